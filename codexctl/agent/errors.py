"""What can go wrong between a device and the agent of a host, each with its remedy."""

from __future__ import annotations

from codexctl.errors import CodexctlError, Refused, UsageError


class AgentUnavailable(CodexctlError):
    """The app-server does not run here now; the message has the reason."""

    code = "agent-unavailable"


class NoCodex(AgentUnavailable):
    """No codex that could be used: missing or too old."""

    code = "no-codex"


class NotLoggedIn(AgentUnavailable):
    """The model provider wants a login that this codex has not."""

    code = "not-logged-in"


class AgentRefused(CodexctlError):
    """The app-server understood and answered with an error."""

    code = "agent-refused"


class UnknownThread(UsageError):
    """No thread of this host has that id or name."""

    code = "unknown-thread"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no thread of this host is called {name[:80]!r}",
            hint="see: codexctl thread list --all",
        )


class AmbiguousThread(UsageError):
    """Several threads have that prefix or name."""

    code = "ambiguous-thread"


class ArchivedThread(UsageError):
    """The thread is archived, and what was asked needs one that is not."""

    code = "archived-thread"


class AlreadyDecided(Refused):
    """Somebody else has answered this approval, or it is over."""

    code = "already-decided"
