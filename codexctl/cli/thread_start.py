"""`codexctl thread start`: a new thread on a host."""

from __future__ import annotations

from typing import Any

import click

from codexctl.agent.mode_order import APPROVALS, SANDBOXES
from codexctl.cli.complete import complete_paired
from codexctl.cli.output import emit, emit_line, json_option, notice, printable
from codexctl.cli.target import need_host
from codexctl.cli.thread_find import at_host, warn_of_bypass
from codexctl.cli.thread_prompt import read_prompt
from codexctl.cli.thread_watch import follow_thread, wait_option
from codexctl.errors import UsageError
from codexctl.paths import Home


@click.command()
@click.argument("host", shell_complete=complete_paired)
@click.argument("words", nargs=-1, metavar="PROMPT")
@click.option("--cwd", metavar="DIR", help="Folder on the host; its workspace without it.")
@click.option(
    "--prompt-file", "files", multiple=True, metavar="FILE",
    help="Add what FILE holds; - is standard input. Several are joined.",
)  # fmt: skip
@click.option("--name", help="A name for it.")
@click.option("--model", help="Another model than the host's own.")
@click.option("--sandbox", type=click.Choice(SANDBOXES), help="What its commands may touch.")
@click.option("--approval", type=click.Choice(APPROVALS), help="When it asks a person.")
@click.option("--worktree", is_flag=True, help="In a git worktree and on a branch of its own.")
@click.option("--branch", metavar="NAME", help="The branch of --worktree; one is made up else.")
@click.option("--watch", "watched", is_flag=True, help="Follow it, as `codexctl thread watch`.")
@wait_option
@json_option
def start(
    host: str,
    words: tuple[str, ...],
    cwd: str | None,
    files: tuple[str, ...],
    name: str | None,
    model: str | None,
    sandbox: str | None,
    approval: str | None,
    worktree: bool,
    branch: str | None,
    watched: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Start a thread of the official Codex on HOST, with PROMPT as its first turn.

    Says first where it will work and what git says of that folder, and warns where something is
    uncommitted there: the thread's changes would mix with it. --worktree keeps them apart. PROMPT -
    is standard input. Modes beyond what the host's policy allows are refused.

    The thread's id goes to stdout. With --json the thread is the first line, and with --wait or
    --watch each event is one of the next.

    \b
        codexctl thread start box --cwd ~/app "fix the flaky test"
        codexctl thread start box --worktree --prompt-file task.md --watch
        git log -5 | codexctl thread start box - --wait
    """
    import secrets

    from codexctl.client.agent import call
    from codexctl.client.threads import open_threads, remember

    if branch and not worktree:
        raise UsageError("--branch is the branch of --worktree", hint="add --worktree")
    prompt = read_prompt(words, files)
    if not prompt:
        raise UsageError(
            "a thread starts with a prompt",
            hint="codexctl thread start HOST PROMPT, or - for stdin",
        )
    home = Home.from_env()
    record = need_host(home, host)
    asked = {
        "cwd": cwd, "name": name, "model": model, "sandbox": sandbox, "approval": approval,
        "worktree": worktree or None, "branch": branch,
    }  # fmt: skip
    with at_host(home, record) as connection:
        state = call(connection, "git.state", {"cwd": cwd} if cwd else {})[0]
        tell_git_state(record.name, state, worktree=worktree)
        params = {key: value for key, value in asked.items() if value is not None}
        params["key"] = secrets.token_hex(16)
        thread = call(connection, "thread.start", params, input=prompt.encode())[0]
        remember(open_threads(home), record.environment_id, [thread])
        if thread.get("notice"):
            notice(str(thread["notice"]))
        if as_json:
            emit_line({"host": record.name, **thread})
        if wait or watched:
            if not as_json:
                notice(f"thread {thread['id']}")
            return follow_thread(
                home, connection, thread, 0, wait=wait, turn_expected=True, as_json=as_json
            )
    if not as_json:
        warn_of_bypass(thread)
        if thread.get("worktree"):
            notice(f"it works in {thread['worktree']} on branch {thread.get('branch')}")
        emit(thread, False, text=printable(str(thread["id"])))
        notice(f"follow it with: codexctl thread watch {record.name}:{str(thread['id'])[:13]}")
    return 0


def tell_git_state(host: str, state: dict[str, Any], *, worktree: bool) -> None:
    """Where a thread will work, on stderr; with a warning where something is uncommitted."""
    notice(f"{host}:{state.get('cwd')}  {git_words(state)}")
    if state.get("lfs_pointers"):
        notice(
            f"warning: {state['lfs_pointers']} files there are Git LFS pointers without their "
            "content; fetch it with: git lfs pull"
        )
    changed = _changed(state)
    if changed and not worktree:
        notice(
            f"warning: not all is committed there ({changed}), and the thread works on top of "
            "that; --worktree keeps it apart"
        )
    elif changed:
        notice(f"the worktree begins at the last commit, without what is not committed ({changed})")


def git_words(state: dict[str, Any]) -> str:
    """What git says of a folder, in a few words."""
    if not state.get("repository"):
        return "a bare git repository" if state.get("bare") else "no git repository"
    head = str(state.get("head") or "")[:9]
    where = state.get("branch") or "no branch"
    words = [f"{where} {head}" if head else f"{where}, no commit yet"]
    words.append(_changed(state) or "clean")
    if state.get("in_progress"):
        words.append(f"in the middle of a {state['in_progress']}")
    return ", ".join(words)


def _changed(state: dict[str, Any]) -> str:
    """`2 staged, 1 untracked`; empty where nothing is uncommitted."""
    names = {
        "staged": "staged",
        "unstaged": "changed",
        "untracked": "untracked",
        "conflicted": "in conflict",
    }
    return ", ".join(f"{state[key]} {word}" for key, word in names.items() if state.get(key))
