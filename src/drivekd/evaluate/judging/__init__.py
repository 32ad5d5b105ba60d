"""Judges of free-text answers."""
