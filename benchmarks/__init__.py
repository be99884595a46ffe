"""Measurements, not tests: `./dev bench` runs them and writes RESULTS.md."""
