"""Checkpoints, logs, cards: what a run leaves on disk."""
