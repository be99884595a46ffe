"""The hooks that plugins may implement, in pluggy; all of codexctl's own providers use these alone.

A plugin is a Python module named by an entry point of the group `codexctl.plugins`:

    [project.entry-points."codexctl.plugins"]
    acme = "codexctl_acme"

    # codexctl_acme.py
    from codexctl.hookspecs import hookimpl

    @hookimpl
    def codexctl_provider() -> Provider: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from codexctl.provision.model import Provider

PROJECT = "codexctl"
ENTRY_POINT_GROUP = "codexctl.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def codexctl_provider() -> Provider:
    """The provider of this plugin: what `codexctl provision NAME` uses.

    Called once a process. Must not do I/O nor import a cloud's SDK: that is for `Provider.open`.
    """
    raise NotImplementedError  # never run: pluggy calls implementations, not the specification
