"""What is compared between teacher and student: layers, attention maps, states, outputs."""
