"""Frames of the file protocol (PROTOCOL.md section 7): what stands in the data of a `file` channel.

A frame is a type, the length of its content as 32 bits, and the content: bytes in `data`, JSON
otherwise. Names that are not UTF-8 travel as lone surrogates in JSON escapes, as Python has them.
No I/O, no state but the reader's rest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from codexctl.errors import CodexctlError, ProtocolError

HEADER = struct.Struct(">BI")
MAX_DATA_BYTES = 64 * 1024
MAX_JSON_BYTES = 64 * 1024
MAX_HOLE_BYTES = 64 << 20  # so that hashing a hole never takes long
MAX_NAME_BYTES = 255
MAX_TARGET_BYTES = 4096
MAX_DEPTH = 128  # components of a path, and descriptors that a receiver has open
WINDOW = 512  # files that are announced and not yet ended
PART_SUFFIX = ".codexctl-part"
CONTENTS = "."  # as the first component: the source folder's content, without its name

ENTRY, WANT, BEGIN, DATA, HOLE, END, FAILED, SKIPPED, FINISH, FINISHED, ERROR = range(1, 12)

FILE, DIRECTORY, SYMLINK = "file", "directory", "symlink"


class Entry(NamedTuple):
    """One thing to copy. `number` counts from 0; `parts` is its path below the target."""

    number: int
    parts: tuple[str, ...]
    kind: str
    mode: int  # permission bits
    mtime_ns: int
    size: int = 0
    target: str = ""


class Want(NamedTuple):
    """The receiver has `offset` bytes whose SHA-256 (hex) is `sha256`; it wants the rest."""

    number: int
    offset: int
    sha256: str


class End(NamedTuple):
    """A file is complete: its size and the SHA-256 (hex) of all of it."""

    number: int
    size: int
    sha256: str


class Failure(NamedTuple):
    """What was not copied and why; `number` is -1 where the sender could not announce it."""

    number: int
    path: str
    message: str


def frame(kind: int, content: bytes | bytearray | memoryview) -> bytes:
    return b"".join((HEADER.pack(kind, len(content)), content))


def json_frame(kind: int, value: dict[str, Any]) -> bytes:
    return frame(kind, json.dumps(value, separators=(",", ":")).encode("ascii"))


def entry_frame(entry: Entry) -> bytes:
    value: dict[str, Any] = {
        "n": entry.number,
        "path": list(entry.parts),
        "type": entry.kind,
        "mode": entry.mode,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.kind == FILE:
        value["size"] = entry.size
    elif entry.kind == SYMLINK:
        value["target"] = entry.target
    return json_frame(ENTRY, value)


def error_frame(error: CodexctlError) -> bytes:
    record = error.as_json()
    return json_frame(ERROR, {**record, "message": error.message[:2000], "hint": error.hint[:2000]})


class FrameReader:
    """Cuts a byte stream into frames. ProtocolError for what no frame can be."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
        """Frames that are complete with `data`; take them all before feeding again."""
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= HEADER.size:
                kind, length = HEADER.unpack_from(rest, at)
                if not ENTRY <= kind <= ERROR:
                    raise ProtocolError(f"a file frame has the unknown type {kind}")
                if length > (MAX_DATA_BYTES if kind == DATA else MAX_JSON_BYTES):
                    raise ProtocolError(f"a file frame of {length} bytes is too long")
                end = at + HEADER.size + length
                if end > len(rest):
                    break
                content = bytes(memoryview(rest)[at + HEADER.size : end])
                at = end
                yield kind, content
        finally:
            del rest[:at]


def decode(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise ProtocolError("a file frame's content is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("a file frame's content is not a JSON object")
    return value


def decode_entry(content: bytes) -> Entry:
    """An entry whose path stays below the target; ProtocolError for any other."""
    value = decode(content)
    kind = value.get("type")
    parts = value.get("path")
    if kind not in (FILE, DIRECTORY, SYMLINK) or not isinstance(parts, list):
        raise ProtocolError("an entry has no type or no path")
    return Entry(
        number=_integer(value, "n"),
        parts=check_parts(parts),
        kind=kind,
        mode=_integer(value, "mode") & 0o777,
        mtime_ns=_integer(value, "mtime_ns", signed=True),
        size=_integer(value, "size") if kind == FILE else 0,
        target=_text(value, "target", MAX_TARGET_BYTES) if kind == SYMLINK else "",
    )


def check_parts(parts: list[Any]) -> tuple[str, ...]:
    """The components of a path, none of which can lead anywhere but one step down."""
    if not 1 <= len(parts) <= MAX_DEPTH:
        raise ProtocolError("the path of an entry is empty or too deep")
    for place, name in enumerate(parts):
        if place == 0 and name == CONTENTS:
            continue
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ProtocolError(f"the path of an entry has the component {str(name)[:80]!r}")
        if name.endswith(PART_SUFFIX):
            raise ProtocolError(f"an entry is named as a partial copy: {name[:80]!r}")
        if not 0 < _bytes(name) <= MAX_NAME_BYTES:
            raise ProtocolError("the path of an entry has a component that is too long")
    return tuple(parts)


def decode_want(content: bytes) -> Want:
    value = decode(content)
    return Want(_integer(value, "n"), _integer(value, "offset"), _text(value, "sha256", 64))


def decode_begin(content: bytes) -> tuple[int, int]:
    """Number and the offset that data will follow from."""
    value = decode(content)
    return _integer(value, "n"), _integer(value, "offset")


def decode_hole(content: bytes) -> int:
    """So many zero bytes."""
    size = _integer(decode(content), "size")
    if size > MAX_HOLE_BYTES:
        raise ProtocolError("a hole is too long for one frame")
    return size


def decode_end(content: bytes) -> End:
    value = decode(content)
    return End(_integer(value, "n"), _integer(value, "size"), _text(value, "sha256", 64))


def decode_failure(content: bytes) -> Failure:
    value = decode(content)
    return Failure(
        _integer(value, "n", signed=True),
        _text(value, "path", MAX_JSON_BYTES),
        _text(value, "message", MAX_JSON_BYTES)[:500],
    )


def failure_frame(kind: int, failure: Failure) -> bytes:
    path, message = failure.path[-4000:], failure.message[:500]
    return json_frame(kind, {"n": failure.number, "path": path, "message": message})


def _integer(value: dict[str, Any], name: str, *, signed: bool = False) -> int:
    number = value.get(name)
    if type(number) is not int or abs(number) >= 1 << 63 or (number < 0 and not signed):
        raise ProtocolError(f"a file frame has no usable {name}")
    return number


def _text(value: dict[str, Any], name: str, limit: int) -> str:
    text = value.get(name)
    if not isinstance(text, str) or "\0" in text or not 0 <= _bytes(text) <= limit:
        raise ProtocolError(f"a file frame has no usable {name}")
    return text


def _bytes(text: str) -> int:
    """Length as a file name; -1 where no file name can be that (a surrogate that is no byte)."""
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return -1
