"""Tasks, one per module: how inputs are tokenized, which function of the model runs, and what the result is."""
