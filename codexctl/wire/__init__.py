"""Bytes to values and back, with strict limits and no I/O."""
