"""Asking a model the questions of a data set, and counting what it got right."""
