"""`codexctl thread resume`, `fork`, `rename`, `goal` and `archive`."""

from __future__ import annotations

from typing import Any

import click

from codexctl.agent.mode_order import APPROVALS, SANDBOXES
from codexctl.cli.output import emit, json_option, notice, printable
from codexctl.cli.thread_find import at_thread, complete_thread, warn_of_bypass
from codexctl.errors import UsageError
from codexctl.paths import Home


def _ask(thread: str, method: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Ask the thread's host; its name and its answer, a thread object or the like."""
    from codexctl.client.agent import call

    with at_thread(Home.from_env(), thread) as (connection, found):
        asked = {key: value for key, value in params.items() if value is not None}
        answer = call(connection, method, {"thread": found["id"], **asked})[0]
        return connection.record.name, {"id": found["id"], **answer}


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option("--sandbox", type=click.Choice(SANDBOXES), help="What its commands may touch.")
@click.option("--approval", type=click.Choice(APPROVALS), help="When it asks a person.")
@json_option
def resume(thread: str, sandbox: str | None, approval: str | None, as_json: bool) -> None:
    """Load THREAD again and say what it may do from now on; `send` then goes on with it.

    Nothing is inherited: a thread that had full access or asked nobody gets that again only where
    you ask for it here, and the host's policy allows it.

    \b
        codexctl thread resume 01a1fdb6 --sandbox read-only
    """
    params = {"sandbox": sandbox, "approval": approval}
    host, answer = _ask(thread, "thread.resume", params)
    if answer.get("notice"):
        notice(str(answer["notice"]))
    warn_of_bypass(answer)
    text = f"{host}:{answer['id']}  sandbox {answer.get('sandbox')}, asks {answer.get('approval')}"
    emit({"host": host, **answer}, as_json, text=printable(text))


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option("--name", help="A name for the new one.")
@click.option("--cwd", metavar="DIR", help="Another folder on the host.")
@json_option
def fork(thread: str, name: str | None, cwd: str | None, as_json: bool) -> None:
    """Begin a new thread on the same host that knows all of what was said in THREAD.

    It works in the same folder, without --cwd. Its id goes to stdout.

    \b
        codexctl thread fork 01a1fdb6 --name "the other way"
    """
    host, answer = _ask(thread, "thread.fork", {"name": name, "cwd": cwd})
    emit({"host": host, **answer}, as_json, text=printable(str(answer["id"])))


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.argument("name")
@json_option
def rename(thread: str, name: str, as_json: bool) -> None:
    """Give THREAD the name NAME, by which commands can address it.

    \b
        codexctl thread rename 01a1fdb6 "flaky test"
    """
    if not name.strip():
        raise UsageError("the name is empty")
    host, answer = _ask(thread, "thread.rename", {"name": name})
    emit({"host": host, **answer}, as_json, text=printable(f"{host}:{answer['id']} is {name}"))


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.argument("objective", required=False)
@click.option("--clear", is_flag=True, help="It has no goal any more.")
@click.option("--pause", is_flag=True, help="Keep the goal, and do not work towards it now.")
@json_option
def goal(thread: str, objective: str | None, clear: bool, pause: bool, as_json: bool) -> None:
    """Show what THREAD works towards, or set it: OBJECTIVE. It goes on by itself until then.

    \b
        codexctl thread goal 01a1fdb6 "all tests pass on Python 3.11 to 3.14"
        codexctl thread goal 01a1fdb6 --clear
    """
    if clear and (objective or pause):
        raise UsageError("--clear goes alone")
    params: dict[str, Any] = {"objective": objective}
    params |= {"clear": True} if clear else {}
    params |= {"state": "paused"} if pause else {}
    host, answer = _ask(thread, "thread.goal", params)
    found = answer.get("goal")
    text = f"{found['objective']} ({found['status']})" if found else "no goal"
    emit({"host": host, "thread": answer["id"], "goal": found}, as_json, text=printable(text))


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option("--undo", is_flag=True, help="Take it back.")
@json_option
def archive(thread: str, undo: bool, as_json: bool) -> None:
    """Put THREAD away: it is kept, listed with `list --archived`, and takes no messages.

    \b
        codexctl thread archive 01a1fdb6
        codexctl thread archive --undo 01a1fdb6
    """
    host, answer = _ask(thread, "thread.unarchive" if undo else "thread.archive", {})
    text = f"{host}:{answer['id']} is {'taken back' if undo else 'archived'}"
    emit({"host": host, **answer}, as_json, text=printable(text))
