"""Readers, one file per format, and the rows that they share."""
