"""Read replies: options, yes or no, text, tags."""
