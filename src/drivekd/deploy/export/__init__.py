"""Trained models as folders for plain transformers and servers."""
