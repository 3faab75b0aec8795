"""Rates, efficiencies, thresholds and their errors: NumPy and SciPy only (`docs/physics.md`)."""
