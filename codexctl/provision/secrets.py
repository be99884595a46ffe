"""Keep a provider's token: in the system's keyring where the `keyring` package finds one, else in a
private file of the home."""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import Any

from codexctl.errors import UsageError
from codexctl.paths import Home
from codexctl.secret import Secret
from codexctl.state.files import read_private, replace_file

SERVICE = "codexctl"
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}\Z")


class HomeSecrets:
    """The `SecretStore` that providers get. A name is a lower-case label."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def get(self, name: str) -> Secret | None:
        path = self._path(name)
        try:
            return Secret(read_private(path, what="the token").decode().strip())
        except FileNotFoundError:
            pass
        keyring = _keyring()
        value = keyring.get_password(SERVICE, name) if keyring is not None else None
        return Secret(value) if value else None

    def put(self, name: str, value: Secret) -> str:
        path = self._path(name)
        keyring = _keyring()
        if keyring is not None:
            keyring.set_password(SERVICE, name, value.reveal())
            return f"the system's keyring, as {SERVICE} {name}"
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        replace_file(path, f"{value.reveal()}\n".encode())
        return path

    def delete(self, name: str) -> bool:
        found = self.get(name) is not None
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            keyring = _keyring()
            if found and keyring is not None:
                keyring.delete_password(SERVICE, name)
        return found

    def _path(self, name: str) -> str:
        if not _NAME.match(name):
            raise UsageError(f"{name!r} cannot be a secret's name")
        return self._home.join("secrets", name)


def _keyring() -> Any:
    """The keyring module when it is installed and has somewhere to keep things."""
    try:
        keyring = import_module("keyring")
    except ImportError:
        return None
    # Backends that keep nothing, or keep it in the clear, have a priority below 1.
    return keyring if keyring.get_keyring().priority >= 1 else None
