"""Text to token ids and back: tokenizers, sequences of a length the model takes, batches, word alignment."""
