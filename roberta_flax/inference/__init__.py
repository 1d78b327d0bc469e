"""Many texts through a model: Predictor, resumable jobs over files, Ray."""
