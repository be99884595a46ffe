"""Errors written for the person who reads them: one sentence, one hint, one exit code.

Exit codes follow ssh and the shells: 255 connection, 126 refused, 127 not found on the host,
130 interrupted, 2 usage, 1 anything else. A class exists only where an exit code or a caller
differs; the sentence is the argument.
"""

from __future__ import annotations

# typing would cost half of what `codexctl --version` takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class CodexctlError(Exception):
    """The base of every expected failure.

    `message` is one lower-case sentence without a final full stop; `hint` names the next command
    to run or the thing to change, and may be empty.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def as_json(self) -> dict[str, str | int]:
        """The record that `--json` prints for a failure."""
        return {
            "error": self.code,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(CodexctlError):
    """What was asked for makes no sense as written."""

    exit_code = 2
    code = "usage"


class StateError(CodexctlError):
    """A file of codexctl's own is missing, unreadable, too open, or the disk is full."""

    code = "state"


class PolicyError(CodexctlError):
    """A policy file that cannot be obeyed to the letter; a daemon does not start with it."""

    code = "policy"


class ConnectionFailed(CodexctlError):
    """The other side was not reached, or was lost for good."""

    exit_code = 255
    code = "connection"


class ProtocolError(ConnectionFailed):
    """The other side sent what the protocol does not allow."""

    code = "protocol"


class AuthenticationFailed(ConnectionFailed):
    """A key, token or signature was not accepted; time does not cure it."""

    code = "authentication"


class Refused(CodexctlError):
    """The host understood and said no: policy, scope, sandbox, permission."""

    exit_code = 126
    code = "refused"


class NotFoundOnHost(CodexctlError):
    """The command does not exist on the host."""

    exit_code = 127
    code = "not-found"


class Interrupted(CodexctlError):
    """The person pressed Ctrl-C."""

    exit_code = 130
    code = "interrupted"
