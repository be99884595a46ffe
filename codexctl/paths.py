"""Where things are: one folder holds all state of one identity.

CODEXCTL_HOME names it; without it, ~/.codexctl. Two homes on one machine are two machines.
"""

from __future__ import annotations

import os

from codexctl.errors import StateError

ENV_HOME = "CODEXCTL_HOME"
ENV_RELAY_TOKEN = "CODEXCTL_RELAY_TOKEN"  # noqa: S105 - a variable's name


class Home:
    """The folder of one identity, and the names of what is in it. Creates nothing by itself."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    @classmethod
    def from_env(cls) -> Home:
        value = os.environ.get(ENV_HOME)
        if value == "":
            raise StateError(
                f"{ENV_HOME} is set but empty", hint=f"unset {ENV_HOME} or give it a folder"
            )
        return cls(value or os.path.join(os.path.expanduser("~"), ".codexctl"))

    def join(self, *parts: str) -> str:
        return os.path.join(self.path, *parts)

    def ensure(self) -> Home:
        """Make the folder, mode 0700. StateError where it cannot be made."""
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"cannot make {self.path}: {error.strerror}",
                hint=f"set {ENV_HOME} to a folder that you can write",
            ) from error
        return self

    @property
    def identity(self) -> str:
        """The Noise static private key of this home, as device and as host."""
        return self.join("identity.key")

    @property
    def identity_mlkem(self) -> str:
        """The seed of the ML-KEM-768 key of the hybrid suite, beside `identity`."""
        return self.join("identity-mlkem.key")

    @property
    def device_db(self) -> str:
        """Hosts that this home is paired with."""
        return self.join("device.db")

    @property
    def host_db(self) -> str:
        """Devices that are paired with this home's host, settings, the audit head."""
        return self.join("host.db")

    @property
    def relay_db(self) -> str:
        """Tokens and registrations of a relay run from this home."""
        return self.join("relay.db")

    @property
    def audit_log(self) -> str:
        return self.join("audit.jsonl")

    @property
    def policy(self) -> str:
        return self.join("policy.toml")

    @property
    def control_socket(self) -> str:
        """The running host daemon's control socket, mode 0600."""
        return self.join("host.sock")
