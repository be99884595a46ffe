"""What holds for every test."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest

# Who runs the tests in the background may have SIGINT ignored; every process below would inherit
# that, and no Ctrl-C could be tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open() -> Iterator[None]:
    """What a module forgot to close is told there, not wherever Python collects it by chance."""
    yield
    gc.collect()
