"""What a copy did, the same record on both sides, for people, `--json` and the audit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Named one by one; what is beyond is counted.
MAX_NAMED = 100


@dataclass
class Summary:
    """Counts of what is complete at the target. `bytes` includes `resumed_bytes`.

    `resumed_bytes` were there already, from a broken copy or an earlier one, and did not travel.
    """

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0
    resumed_bytes: int = 0
    failures: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def fail(self, path: str, message: str) -> None:
        self.failures += 1
        if len(self.failed) < MAX_NAMED:
            self.failed.append({"path": path, "message": message})

    def skip(self, path: str, message: str) -> None:
        if len(self.skipped) < MAX_NAMED:
            self.skipped.append({"path": path, "message": message})

    def counts(self) -> dict[str, int]:
        names = ("files", "directories", "symlinks", "bytes", "resumed_bytes")
        return {name: getattr(self, name) for name in names}

    def take(self, counts: dict[str, Any]) -> None:
        """The receiver's counts: it knows what has become complete."""
        for name in self.counts():
            value = counts.get(name)
            if type(value) is int and value >= 0:
                setattr(self, name, value)

    def add(self, other: Summary) -> None:
        """Join what another copy did."""
        for name, value in other.counts().items():
            setattr(self, name, getattr(self, name) + value)
        self.failures += other.failures
        self.failed += other.failed
        self.skipped += other.skipped
