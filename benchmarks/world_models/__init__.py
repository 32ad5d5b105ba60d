"""Makers of the shipped models: vision tower, grounding, teachers."""
