"""What a git patch changes: files and counts, read line by line, so that any size goes.

`git diff --binary` writes it (the host's side); this reads names, kinds and counts, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BAR_COLUMNS = 40
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_ESCAPED = {
    b"n": b"\n",
    b"t": b"\t",
    b"r": b"\r",
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"v": b"\v",
}
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


class FileChange(NamedTuple):
    """One file of a patch. `kind` is modified, added, deleted, renamed or copied."""

    path: str
    kind: str
    added: int
    removed: int
    binary: bool
    old_path: str | None = None

    @property
    def label(self) -> str:
        return self.path if self.old_path is None else f"{self.old_path} => {self.path}"


class _File:
    def __init__(self, header: bytes) -> None:
        self.path, self.old = _header_paths(header)
        self.kind = "modified"
        self.added = self.removed = 0
        self.binary = False

    def extended(self, line: bytes) -> None:
        """A line between the header and the first hunk."""
        name, _, rest = line.partition(b" ")
        if name == b"new":
            self.kind = "added" if rest.startswith(b"file") else self.kind
        elif name == b"deleted":
            self.kind = "deleted"
        elif name in (b"rename", b"copy"):
            self.kind = "renamed" if name == b"rename" else "copied"
            side, _, path = rest.partition(b" ")
            if side == b"from":
                self.old = _unquote(path)
            else:
                self.path = _unquote(path)
        elif name in (b"GIT", b"Binary"):
            self.binary = True

    def result(self) -> FileChange:
        moved = self.kind in ("renamed", "copied")
        return FileChange(
            self.path, self.kind, self.added, self.removed, self.binary, self.old if moved else None
        )


def changes(lines: Iterable[bytes]) -> Iterator[FileChange]:
    """The files of a patch, in its order. Lines with or without their ends."""
    file: _File | None = None
    old_left = new_left = 0  # lines that the hunk still has on each side
    for line in lines:
        line = line.rstrip(b"\n")
        if file is not None and (old_left > 0 or new_left > 0):
            sign = line[:1]
            old_left -= sign in (b" ", b"-", b"")
            new_left -= sign in (b" ", b"+", b"")
            file.removed += sign == b"-"
            file.added += sign == b"+"
        elif line.startswith(b"diff --git "):
            if file is not None:
                yield file.result()
            file = _File(line[len(b"diff --git ") :])
        elif file is not None:
            hunk = _HUNK.match(line)
            if hunk:
                old_left, new_left = (int(n) if n is not None else 1 for n in hunk.groups())
            else:
                file.extended(line)
    if file is not None:
        yield file.result()


def _header_paths(header: bytes) -> tuple[str, str]:
    """New and old path of `a/X b/X`; both are equal unless rename lines say otherwise."""
    if header.startswith(b'"'):
        end = header.index(b'" ', 1) if b'" ' in header[1:] else len(header)
        old = header[: end + 1]
        new = header[end + 2 :]
    elif header.endswith(b'"'):
        old, _, rest = header.partition(b' "')
        new = b'"' + rest
    else:
        # Names may hold " b/": without a rename both halves have one length.
        half = len(header) // 2
        old, new = header[:half], header[half + 1 :]
    return _side(new), _side(old)


def _side(path: bytes) -> str:
    text = _unquote(path)
    return text[2:] if text[:2] in ("a/", "b/") else text


def _unquote(path: bytes) -> str:
    """A path as git writes it: in quotes with escapes, or as it is."""
    if len(path) >= 2 and path.startswith(b'"') and path.endswith(b'"'):
        path = _ESCAPE.sub(_escaped, path[1:-1])
    return path.decode(errors="surrogateescape")


def _escaped(found: re.Match[bytes]) -> bytes:
    code = found[1]
    return bytes((int(code, 8) & 0xFF,)) if code.isdigit() else _ESCAPED.get(code, code)


def stat_lines(files: list[FileChange], width: int) -> list[str]:
    """As `git diff --stat`: a line a file with a bar, and the sum."""
    if not files:
        return []
    most = max(file.added + file.removed for file in files)
    digits = max(len(str(most)), 3 if any(file.binary for file in files) else 1)
    bar = min(BAR_COLUMNS, max(width // 3, 5))
    names = min(max(len(file.label) for file in files), max(width - bar - digits - 6, 10))
    out = []
    for file in files:
        label = file.label
        if len(label) > names:
            label = "…" + label[len(label) - names + 1 :]
        count = "Bin" if file.binary else str(file.added + file.removed)
        line = f" {label:<{names}} | {count:>{digits}}"
        scale = min(1.0, bar / most) if most else 0.0
        # Of what there is at least one sign is shown.
        plus, minus = (max(int(n * scale), min(n, 1)) for n in (file.added, file.removed))
        out.append(f"{line} {'+' * plus}{'-' * minus}".rstrip())
    added, removed = sum(f.added for f in files), sum(f.removed for f in files)
    total = f" {len(files)} file{'s' if len(files) != 1 else ''} changed"
    total += f", {added} insertion{'s' if added != 1 else ''}(+)" if added else ""
    total += f", {removed} deletion{'s' if removed != 1 else ''}(-)" if removed else ""
    return [*out, total]
