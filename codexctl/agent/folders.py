"""Where a thread works and what codexctl keeps of that: folders, and worktrees of their own."""

from __future__ import annotations

import asyncio
import os

from codexctl.agent import tree
from codexctl.agent.call import Call
from codexctl.errors import Refused, UsageError
from codexctl.paths import Home


def need_folder(call: Call, cwd: str) -> None:
    """UsageError where a thread's folder is not there; Refused where devices may not work in it.

    A thread of the official CLI may be anywhere; a worktree of `make_worktree` is always allowed.
    """
    real = os.path.realpath(cwd)
    if not os.path.isdir(real):
        raise UsageError(
            f"the thread's folder {cwd} is not there any more",
            hint="bring it back, or fork the thread with --cwd",
        )
    if not real.startswith(os.path.realpath(_own_worktrees(call)) + os.sep):
        call.context.policy.check_folder(real, call.context.workspace)


def _own_worktrees(call: Call) -> str:
    return call.context.home.join("worktrees")


async def make_worktree(
    call: Call, place: tree.Place | None, cwd: str, prompt: str | None
) -> dict[str, str]:
    """A worktree for a new thread, on a branch of its own: `cwd` in it, `branch`, `worktree`.

    It lies beside the repository where the policy lets devices work, else in codexctl's own home.
    """
    if place is None:
        raise UsageError(
            f"{cwd} is not in a git repository, so it can have no worktree",
            hint="start without --worktree",
        )
    branch = call.maybe_text("branch") or tree.branch_name(prompt or "")
    beside = f"{place.top}.worktrees"
    try:
        call.context.policy.check_folder(beside, call.context.workspace)
    except Refused:
        beside = os.path.join(_own_worktrees(call), os.path.basename(place.top))
    made, path = await asyncio.to_thread(tree.add_worktree, place, beside, branch)
    return {"cwd": _same_below(path, cwd, place.top), "branch": made, "worktree": path}


def _same_below(path: str, cwd: str, top: str) -> str:
    """What `cwd` is in the worktree at `path`; its top where there is no such folder."""
    inside = os.path.normpath(os.path.join(path, os.path.relpath(cwd, top)))
    return inside if os.path.isdir(inside) else path


def thread_folder(home: Home, thread: str) -> str:
    """Where codexctl keeps what belongs to a thread."""
    path = home.join("threads", thread)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def folder(call: Call, name: str | None) -> str:
    """The real path of a folder that the policy lets be worked in. UsageError, Refused."""
    workspace = call.context.workspace
    path = os.path.join(workspace, os.path.expanduser(name or workspace))
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise UsageError(
            f"there is no folder {path} on {call.context.name}",
            hint="name one that exists there with --cwd",
        )
    call.context.policy.check_folder(real, workspace)
    return real
