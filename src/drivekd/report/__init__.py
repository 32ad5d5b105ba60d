"""Turns the result files of a run into pictures and one page; runs nothing itself."""
