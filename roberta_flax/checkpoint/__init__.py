"""Models on disk: the converted directory, tensors in safetensors files, downloads, StableHLO programs."""
