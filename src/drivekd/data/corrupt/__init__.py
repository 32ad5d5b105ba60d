"""Data files with corrupted pictures."""
