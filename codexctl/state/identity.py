"""The static key of a home: one for its device and its host, in a file of mode 0600."""

from __future__ import annotations

import base64

from codexctl.errors import StateError
from codexctl.noise.keys import PrivateKey
from codexctl.paths import Home
from codexctl.state.files import create_private, read_private

_FILE_HEADER = "codexctl-x25519-v1 "
_FILE_LIMIT_BYTES = 1024


def load_identity(home: Home) -> PrivateKey:
    """The home's key, made on first use. StateError where its file is open to others or damaged."""
    try:
        return _parse(
            read_private(home.identity, what="the identity key", limit=_FILE_LIMIT_BYTES), home
        )
    except FileNotFoundError:
        pass
    home.ensure()
    key = PrivateKey.generate()
    text = _FILE_HEADER + base64.b64encode(key.private_bytes).decode() + "\n"
    try:
        create_private(home.identity, text.encode())
    except FileExistsError:
        # Another process of this home was first.
        return _parse(
            read_private(home.identity, what="the identity key", limit=_FILE_LIMIT_BYTES), home
        )
    return key


def _parse(data: bytes, home: Home) -> PrivateKey:
    try:
        text = data.decode("ascii")
        if not text.startswith(_FILE_HEADER):
            raise ValueError("header")
        return PrivateKey(base64.b64decode(text[len(_FILE_HEADER) :].strip(), validate=True))
    except ValueError:
        raise StateError(
            f"the identity key {home.identity} is damaged",
            hint="restore it from a backup, or move it away and pair again",
        ) from None
