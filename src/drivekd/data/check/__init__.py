"""What is wrong with a data file: faults, repeats, leaks, balance."""
