"""Text to token ids and back: tokenizers, sequences within the maximum length, batches, alignment with words."""
