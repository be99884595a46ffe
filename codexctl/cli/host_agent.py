"""`codexctl host agent`: what a handoff to or from an SSH machine runs there."""

from __future__ import annotations

import click

from codexctl.cli.host_run import host_name, log_to_stderr, workspace_option, workspace_path
from codexctl.paths import Home


@click.command()
@workspace_option
def agent(workspace: str | None) -> None:
    """Serve the agent of this machine on standard input and output, to codexctl over SSH.

    A handoff to an alias of ~/.ssh/config runs this there; nobody types it. It takes part with all
    that the login may do here, within this machine's policy, and ends with the connection.

    \b
        ssh devbox codexctl host agent
    """
    import asyncio
    import getpass

    from codexctl.agent.stdio import serve_stdio
    from codexctl.host.context import HostContext

    log_to_stderr(as_json=False)
    home = Home.from_env().ensure()
    context = HostContext.create(home, workspace_path(workspace), host_name(None))
    asyncio.run(serve_stdio(context, getpass.getuser()))
