"""Channels of kind `agent`: one request each, looked up, allowed, recorded, answered.

PROTOCOL.md section 8 has the methods. A request changes nothing before it is accepted; what goes
wrong after that closes the channel with the error.
"""

from __future__ import annotations

from importlib import import_module

from codexctl.agent.call import OUTPUT, Call, Method
from codexctl.errors import UsageError
from codexctl.host.context import HostContext
from codexctl.session.channel import HostChannel

# Where the methods of a family are; loaded when one of it is asked for.
FAMILIES = {
    "thread": "codexctl.agent.methods",
    "approval": "codexctl.agent.decisions",
    "agent": "codexctl.agent.status",
    "git": "codexctl.agent.status",
    "handoff": "codexctl.agent.handoff.service",
}


async def serve_agent(channel: HostChannel, context: HostContext) -> None:
    """Serve one channel of kind `agent`. Refused without the scope; UsageError."""
    name = channel.params.get("method")
    params = channel.params.get("params") or {}
    if not isinstance(name, str) or not isinstance(params, dict):
        raise UsageError("a request to the agent names its method and its params")
    method = find_method(name)
    call = Call(name, params, channel, context, has_input=channel.params.get("input") is True)
    call.need(method.scope)
    await channel.accept({})
    await method.handle(call)
    await channel.write_eof(OUTPUT)


def find_method(name: str) -> Method:
    """The method of this name. UsageError."""
    family = FAMILIES.get(name.partition(".")[0])
    if family is not None:
        methods: dict[str, Method] = import_module(family).METHODS
        if name in methods:
            return methods[name]
    raise UsageError(
        f"this host's agent does not know {name[:60]!r}", hint="update codexctl on the host"
    )
