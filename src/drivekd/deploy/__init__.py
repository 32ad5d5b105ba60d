"""Models in use: what they cost, how fast they answer, folders and a server for them."""
