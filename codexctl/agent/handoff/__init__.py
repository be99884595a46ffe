"""Moving a thread, with its working tree, from one host to another."""
