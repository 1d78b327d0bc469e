"""What is asked of a model, one module a task: how inputs are tokenized, which function runs, what a result is."""
