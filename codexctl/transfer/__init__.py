"""Copying trees: a sender, a receiver and the bytes between them, whatever carries those."""
