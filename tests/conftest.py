"""What holds for every test."""

from __future__ import annotations

import signal

# Who runs the tests in the background may have SIGINT ignored; every process below would inherit
# that, and no Ctrl-C could be tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
