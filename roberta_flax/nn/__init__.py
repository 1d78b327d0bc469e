"""The network and what it computes: configuration, the Flax module, pure jitted functions over a parameter tree."""
