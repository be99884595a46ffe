"""codexctl's command line with a numbered point after everything that changes something.

    CODEXCTL_TEST_KILL=7 python -m tests.provision.killable provision reference …

dies by SIGKILL at the seventh: after a write of the journal, of a pinned key, of the ssh config,
and (in reference.py) around each step of the cloud. With a network of network.py, also whatever is
told is a point. CODEXCTL_TEST_LOSE="3 request" loses the third call of the cloud, or its "answer".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from codexctl.cli.main import run
from codexctl.provision import install, keys
from codexctl.provision.errors import OutcomeUnknown
from codexctl.provision.journal import Journal
from codexctl.provision.readiness import Teller
from codexctl.provision.ssh_config import SshConfig
from tests.provision import network
from tests.provision.points import point
from tests.provision.reference import ReferenceAccount


def after(owner: Any, name: str, label: str) -> None:
    """Put a point after a function."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        what = f"{label} {args[2].stage}" if label == "journal" else label
        what = f"{label} {args[1]} {args[2]}" if label == "told" else what
        answer = original(*args, **kwargs)
        point(what)
        return answer

    setattr(owner, name, wrapped)


def losing(number: int, what: str) -> None:
    """Have the network fail in one call of the cloud: before it, or after its effect."""
    count = 0

    def wrap(name: str) -> None:
        original: Callable[..., Any] = getattr(ReferenceAccount, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            mine = count == number
            if mine and what == "request":
                raise OutcomeUnknown("the network is down")
            answer = original(*args, **kwargs)
            if mine:
                raise OutcomeUnknown("the network went down")
            return answer

        setattr(ReferenceAccount, name, wrapped)

    for name in ("account_id", "plan", "create", "describe", "list_owned", "destroy"):
        wrap(name)


def main() -> None:
    if os.environ.get(network.ENV) or os.environ.get("CODEXCTL_TEST_INTERRUPT"):
        after(Teller, "__call__", "told")
    if lost := os.environ.get("CODEXCTL_TEST_LOSE"):
        number, _, what = lost.partition(" ")
        losing(int(number), what)
    after(Journal, "begin", "journal entry")
    after(Journal, "save", "journal")
    after(Journal, "set_machine", "machine kept")
    after(keys.WorkspaceFiles, "pin", "host key pinned")
    after(keys.WorkspaceFiles, "remove", "folder removed")
    after(SshConfig, "write", "ssh config")
    after(install, "rotate_host_key", "host key rotation")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
