"""The embedded driving world: traffic, six cameras, questions with exact answers."""
