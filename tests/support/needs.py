"""What a test needs of the machine: where it is missing the test skips, and fails on CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip with the reason; on CI, where everything is installed, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"missing on CI: {reason}")
    pytest.skip(reason)
