"""The bench of tests/host, for what speaks exec-server to a host."""

from __future__ import annotations

from tests.host.conftest import bench, pytest_collection_modifyitems, sandboxed

__all__ = ["bench", "pytest_collection_modifyitems", "sandboxed"]
