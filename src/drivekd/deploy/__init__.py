"""Models in use: what they cost, and how fast they answer."""
