"""The machine where commands, threads and files live."""
