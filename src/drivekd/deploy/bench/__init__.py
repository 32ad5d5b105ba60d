"""How fast a model answers, and what it takes."""
