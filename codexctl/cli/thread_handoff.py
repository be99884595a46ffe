"""`codexctl thread handoff`: move a thread, with its working tree, to another host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from codexctl.cli.output import emit, json_option, notice, progress, size_text
from codexctl.cli.target import SSH_PREFIX, find_host, find_ssh, open_connection
from codexctl.cli.thread_find import complete_thread, locate
from codexctl.errors import CodexctlError, ConnectionFailed, Interrupted, Refused, UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.handoff import Handoff, Plan, Remote

SHORT_COMMIT = 10
LATER = "codexctl thread handoff {thread} --resume (or --undo)"


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option("--to", "host", metavar="HOST", help="The host that it moves to.")
@click.option("--path", metavar="FOLDER", help="Where on that host; it must not exist yet.")
@click.option("--interrupt", is_flag=True, help="Stop the turn that runs instead of waiting.")
@click.option(
    "--include-ignored", "globs", multiple=True, metavar="GLOB",
    help="Carry ignored files of this pattern too; * crosses folders. May be given again.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would move, and stop.")
@click.option("--resume", is_flag=True, help="Finish a handoff that broke off.")
@click.option("--undo", is_flag=True, help="Undo a handoff that broke off.")
@json_option
def handoff(
    thread: str,
    host: str | None,
    path: str | None,
    interrupt: bool,
    globs: tuple[str, ...],
    dry_run: bool,
    resume: bool,
    undo: bool,
    as_json: bool,
) -> int:
    """Move THREAD to another host: conversation, goal, name and the exact working tree.

    \b
        codexctl thread handoff 01a1fdb6 --to desktop --dry-run
        codexctl thread handoff 01a1fdb6 --to desktop
        codexctl thread handoff 01a1fdb6 --resume

    It waits for the turn that runs. The tree arrives in a folder of its own, with HEAD, branch,
    index, unstaged and untracked files and stashes as they are here; only what the other host
    lacks is sent, and it is compared there before the thread is its. Files that look like
    credentials, ignored files and everything outside the repository stay. Here the thread is
    archived with a pointer to where it went; its folder is left as it is. Approvals that are off
    do not move along.

    Whatever breaks, one host owns the thread: --resume finishes, from any paired device, and --undo
    goes back while it is not the other's yet. HOST is a paired host, or an alias of ~/.ssh/config
    with codexctl installed; a thread that is there is written ssh:ALIAS:THREAD.

    Exit status: 0 moved (or undone, or told), 1 not moved, 126 a host refused, 255 a host was not
    reached and the handoff waits for --resume.
    """
    if resume or undo:
        if (resume and undo) or host or path or globs or dry_run:
            raise UsageError("--resume and --undo stand alone with the thread")
        return _go_on(thread, undo=undo, interrupt=interrupt, as_json=as_json)
    if not host:
        raise UsageError("name the host that it moves to", hint="add --to HOST")
    home = Home.from_env()
    with ExitStack() as stack:
        source, name = _source(home, thread, stack)
        target = stack.enter_context(_remote(home, host))
        if (source.kind, source.id) == (target.kind, target.id):
            raise UsageError(f"the thread is on {target.name} already")
        move = _handoff(source, target)
        with progress("looking at both sides"):
            plan = move.plan(name, globs=globs, path=path)
        obstacles = plan.obstacles()
        if dry_run:
            emit(plan.as_json(), as_json, text=plan_text(plan))
            return 1 if obstacles else 0
        notice_plan(plan)
        if obstacles:
            raise Refused(f"{target.name} cannot take it: {'; '.join(obstacles)}")
        with _moving(move, plan.source["thread"]) as moved:
            result = moved.start(plan, interrupt=interrupt, globs=globs, path=path)
    _remember(home, source, target, result)
    return _told(result, as_json)


def _go_on(thread: str, *, undo: bool, interrupt: bool, as_json: bool) -> int:
    """Finish or undo what stands in the journals of the hosts."""
    home = Home.from_env()
    with ExitStack() as stack:
        row, remote = _under_way(home, thread, stack)
        try:
            other = stack.enter_context(_remote(home, _name_of(home, row["peer"])))
        except ConnectionFailed as error:
            if not undo or row["side"] != "source":
                error.hint = f"the handoff waits: {LATER.format(thread=row['thread'])}"
                raise
            return _undo_alone(row, remote, error, as_json)
        source, target = (remote, other) if row["side"] == "source" else (other, remote)
        move = _handoff(source, target, id=row["id"])
        with _moving(move, row["thread"]) as moved:
            if undo:
                moved.undo(row["thread"])
            result = moved.go_on(row["thread"], interrupt=interrupt)
    _remember(home, source, target, result)
    return _told(result, as_json)


def _undo_alone(row: dict[str, Any], source: Remote, error: ConnectionFailed, as_json: bool) -> int:
    """The source decides: it keeps the thread also while the other side is away."""
    list(source.stream("handoff.undo", {"id": row["id"]}))
    notice(
        f"{row['peer']['name']} is not reached ({error}); what arrived there is cleared by "
        "the same command when it is back"
    )
    result = {"thread": row["thread"], "id": row["id"], "moved": False, "host": source.name}
    return _told({**result, "states": ["undone", None], "notices": []}, as_json)


def _remember(home: Home, source: Remote, target: Remote, result: dict[str, Any]) -> None:
    """Where this device looks for the thread from now on."""
    from codexctl.client.threads import forget, open_threads, remember

    db = open_threads(home)
    gone, there = (source, target) if result["moved"] else (target, source)
    forget(db, gone.id, result["thread"])
    if there.kind == "host":
        thread = {"id": result["thread"], "cwd": result.get("folder"), "name": result.get("name")}
        remember(db, there.id, [thread])


def _told(result: dict[str, Any], as_json: bool) -> int:
    for text in result["notices"]:
        notice(text)
    where = f"{result['host']}:{result['folder']}" if result["moved"] else result["host"]
    said = f"moved to {where}" if result["moved"] else f"stays on {where}"
    emit(result, as_json, text=f"thread {result['thread']} {said}")
    return 0


@contextmanager
def _moving(move: Handoff, thread: str) -> Iterator[Handoff]:
    """Errors get the next command; Ctrl-C leaves a handoff that can be resumed or undone."""
    later = LATER.format(thread=thread)
    try:
        yield move
    except ConnectionFailed as error:
        error.hint = f"the handoff waits: {later}"
        raise
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the handoff waits", hint=later) from None


def _handoff(source: Remote, target: Remote, *, id: str = "") -> Handoff:
    from codexctl.client.handoff import Handoff
    from codexctl.client.handoff_host import HostRemote

    for one, other in ((source, target), (target, source)):
        if isinstance(other, HostRemote):
            one.keeps(other)
    sending = _Sending()
    return Handoff(source, target, id=id, tell=sending.tell, moved=sending.moved)


class _Sending:
    """The line about how much went, between the lines about what happens."""

    def __init__(self) -> None:
        self._line: progress | None = None

    def moved(self, done: int, total: int) -> None:
        if self._line is None:
            self._line = progress("sending", total=total).__enter__()
        self._line(done)

    def tell(self, news: dict[str, Any]) -> None:
        if self._line is not None:
            self._line.__exit__()
            self._line = None
        _tell(news)


def _tell(news: dict[str, Any]) -> None:
    if news.get("waiting") == "turn":
        notice("waiting for the turn that runs; --interrupt stops it")
    elif news.get("waiting") == "approval":
        approval = news["approval"]
        what = approval.get("command") or approval.get("reason") or approval["kind"]
        notice(f"the turn waits for an answer ({what}): codexctl thread approve {approval['id']}")
    elif "step" in news:
        notice(str(news["step"]))


def _source(home: Home, thread: str, stack: ExitStack) -> tuple[Remote, str]:
    """The host of the thread, and what it is called there."""
    if thread.startswith(SSH_PREFIX) and thread.count(":") > 1:
        _, alias, name = thread.split(":", 2)
        return stack.enter_context(_remote(home, SSH_PREFIX + alias)), name
    from codexctl.client.handoff_host import HostRemote

    place = locate(home, thread)
    return HostRemote(stack.enter_context(open_connection(home, place.record))), place.thread


@contextmanager
def _remote(home: Home, name: str) -> Iterator[Remote]:
    """A paired host of that name, or an alias that is reached over SSH."""
    record = find_host(home, name)
    if record is not None:
        from codexctl.client.handoff_host import HostRemote

        with open_connection(home, record) as connection:
            yield HostRemote(connection)
        return
    target = find_ssh(name)
    from codexctl.client.handoff_ssh import open_ssh

    with open_ssh(target) as remote:
        yield remote


def _under_way(home: Home, thread: str, stack: ExitStack) -> tuple[dict[str, Any], Remote]:
    """The handoff of this thread that is not over, and the host that says so."""
    from codexctl.client.store import HostStore

    name = thread.rpartition(":")[2]
    asked = [record.name for record in HostStore(home).paired()]
    if thread.startswith(SSH_PREFIX) and thread.count(":") > 1:
        asked = [thread.rpartition(":")[0]]
    for host in asked:
        try:
            remote = stack.enter_context(_remote(home, host))
            rows = list(remote.stream("handoff.list", {}))
        except CodexctlError as error:
            notice(f"{host} was left out: {error}")
            continue
        for row in rows:
            if not row["over"] and (row["thread"].startswith(name) or row.get("name") == name):
                return row, remote
    raise UsageError(f"no handoff of {thread} is under way", hint="see: codexctl thread list --all")


def _name_of(home: Home, peer: dict[str, Any]) -> str:
    """What this device calls the other side of a handoff."""
    from codexctl.client.store import HostStore

    if peer["kind"] == "ssh":
        return f"{SSH_PREFIX}{peer['id']}"
    for record in HostStore(home).paired():
        if record.environment_id == peer["id"]:
            return record.name
    raise UsageError(
        f"this device is not paired with {peer['name']}, the other side of this handoff",
        hint="run it on the device that began it, or pair with that host",
    )


def notice_plan(plan: Plan) -> None:
    for line in plan_text(plan).splitlines():
        notice(line)


def plan_text(plan: Plan) -> str:
    """What moves, in a few lines."""
    source, target, tree = plan.source, plan.target, plan.source["survey"]
    snapshot = source["snapshot"]
    branch = (snapshot["branch"] or "").removeprefix("refs/heads/") or "no branch"
    head = (snapshot["head"] or "no commit yet")[:SHORT_COMMIT].strip()
    title = source["name"] or source["thread"]
    lines = [
        f"{title}: {source['host']}:{source['cwd']} -> {target['host']}:{target['place']}",
        f"tree: {branch} at {head}, {tree['changed']} changed, {tree['untracked']} untracked "
        f"({size_text(tree['size'])}), {len(snapshot['stashes'])} stashed",
        f"sends: {size_text(plan.packed['bundle'])} of commits and files, "
        f"{size_text(plan.packed['rollout'])} of conversation",
    ]
    if target["clone"]:
        lines.append(f"builds on: {target['host']}:{target['clone']}")
    lines += [f"stays here: {left['path']} ({left['why']})" for left in tree["left"]]
    if tree["left_more"]:
        lines.append(f"stays here: {tree['left_more']} more files of that kind")
    for module in tree["submodules"]:
        at = module["checked_out"]
        state = "not checked out" if at is None else f"at {at[:SHORT_COMMIT]}"
        changed = ", with changes that stay here" if module["changed"] else ""
        recorded = module["recorded"][:SHORT_COMMIT]
        lines.append(f"submodule: {module['path']} {state} (recorded {recorded}){changed}")
    if source["active"]:
        lines.append("a turn runs: it is waited for")
    lines += [f"waits for a person: {a['id']} {a['kind']}" for a in source["approvals"]]
    lines += [f"differs: {text}" for text in plan.lacks()]
    lines += [f"in the way: {text}" for text in plan.obstacles()]
    return "\n".join(lines)
