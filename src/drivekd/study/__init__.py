"""Studies of a teacher before anything is distilled: which layers, and which signal."""
