"""The methods of `thread.*` by name, with the scope that each needs."""

from __future__ import annotations

from codexctl.agent import changes, threads
from codexctl.agent.call import Method
from codexctl.agent.once import once

METHODS = {
    "thread.list": Method("view", threads.list_all),
    "thread.show": Method("view", threads.show),
    "thread.watch": Method("view", threads.watch),
    "thread.diff": Method("view", changes.diff),
    "thread.export": Method("view", changes.export),
    "thread.goal": Method("view", changes.goal),  # to set one it asks for `exec` itself
    "thread.start": Method("exec", once(threads.start)),
    "thread.send": Method("exec", once(threads.send)),
    "thread.steer": Method("exec", once(threads.steer)),
    "thread.interrupt": Method("exec", threads.interrupt),
    "thread.resume": Method("exec", once(changes.resume)),
    "thread.fork": Method("exec", once(changes.fork)),
    "thread.rename": Method("exec", changes.rename),
    "thread.archive": Method("exec", changes.archive),
    "thread.unarchive": Method("exec", changes.unarchive),
    "thread.review": Method("exec", changes.review),
}
