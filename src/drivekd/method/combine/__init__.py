"""How one gradient per loss becomes one update: weights, projection, telemetry."""
