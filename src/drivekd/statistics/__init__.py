"""Estimates, intervals and tests that know of scenes and seeds: one for all rooms."""
