"""The embedded driving world [ours]: traffic, six cameras, questions with exact answers."""
