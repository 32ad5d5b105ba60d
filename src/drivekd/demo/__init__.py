"""The main job on the embedded world, and one question to one model."""
