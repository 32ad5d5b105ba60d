"""Frozen teachers and what is captured of a forward pass."""
