"""The brain: ring -> signals."""
