"""The command line: one command a file, nothing heavy imported for help."""
