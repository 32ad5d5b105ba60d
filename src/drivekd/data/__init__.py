"""Driving questions as data: one `Sample` per question, and the readers that make them."""
