"""codexctl's command line with a numbered point after everything that changes something.

    CODEXCTL_TEST_KILL=7 python -m tests.provision.killable provision reference …

dies by SIGKILL at the seventh: after a write of the journal, of a pinned key, of the ssh config,
and (in reference.py) around each step of the cloud.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from codexctl.cli.main import run
from codexctl.provision import install, keys
from codexctl.provision.journal import Journal
from codexctl.provision.ssh_config import SshConfig
from tests.provision.points import point


def after(owner: Any, name: str, label: str) -> None:
    """Put a point after a function."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        what = f"{label} {args[2].stage}" if label == "journal" else label
        answer = original(*args, **kwargs)
        point(what)
        return answer

    setattr(owner, name, wrapped)


def main() -> None:
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
