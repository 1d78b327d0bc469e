"""Batch inference: Predictor over any iterable of inputs, resumable jobs over files, and Ray."""
