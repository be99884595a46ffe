"""The static keys of a home: one identity for its device and its host, in files of mode 0600."""

from __future__ import annotations

import base64
import os

from codexctl.errors import StateError
from codexctl.noise.keys import KEM_SEED_BYTES, KEY_BYTES, PrivateKey
from codexctl.paths import Home
from codexctl.state.files import create_private, read_private

_X25519_HEADER = "codexctl-x25519-v1 "
_MLKEM_HEADER = "codexctl-mlkem768-v1 "
_FILE_LIMIT_BYTES = 1024


def load_identity(home: Home) -> PrivateKey:
    """The home's keys, made on first use. StateError where a file is open to others or damaged.

    Both are random bytes: an X25519 private key may be any 32, an ML-KEM-768 seed any 64.
    """
    private = _load(home, home.identity, _X25519_HEADER, KEY_BYTES)
    return PrivateKey(private, _load(home, home.identity_mlkem, _MLKEM_HEADER, KEM_SEED_BYTES))


def _load(home: Home, path: str, header: str, size: int) -> bytes:
    try:
        return _read(path, header, size)
    except FileNotFoundError:
        pass
    home.ensure()
    fresh = os.urandom(size)
    try:
        create_private(path, (header + base64.b64encode(fresh).decode() + "\n").encode())
    except FileExistsError:
        # Another process of this home was first.
        return _read(path, header, size)
    return fresh


def _read(path: str, header: str, size: int) -> bytes:
    text = read_private(path, what="the identity key", limit=_FILE_LIMIT_BYTES)
    try:
        start, content = text.decode("ascii")[: len(header)], text.decode("ascii")[len(header) :]
        value = base64.b64decode(content.strip(), validate=True)
        if start != header or len(value) != size:
            raise ValueError("header or size")
    except ValueError:
        raise StateError(
            f"the identity key {path} is damaged",
            hint="restore it from a backup, or move it away and pair again",
        ) from None
    return value
