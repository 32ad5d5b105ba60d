"""Files and processes: locks, whole-or-nothing writes, progress, workers. Nothing of driving."""
