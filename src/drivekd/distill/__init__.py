"""Distillation: its mathematics (layers, attention, losses, projection, weighting) and its use.

The five modules of mathematics know no model family, no recipe and no file; everything that does
(teachers, checkpoints, the training loop) is built on top of them.
"""
