"""From what a person calls a thread to a connection with its host: used by every thread command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

from codexctl.cli.output import notice, progress
from codexctl.cli.target import need_host, open_connection
from codexctl.errors import CodexctlError, UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from codexctl.client.connection import Connection
    from codexctl.client.store import HostRecord
    from codexctl.client.threads import Known

T = TypeVar("T")

HOSTS_AT_ONCE = 16
LISTED = 500  # threads asked of a host when one is looked for
_LINK = "/thread#"


class Place(NamedTuple):
    """Where a thread is: its host, and what the host is asked for (an id or a name)."""

    record: HostRecord
    thread: str


def locate(home: Home, text: str) -> Place:
    """The host of a thread: the one that is named, the one that listed it, or else all are asked.

    UsageError where there is none, or several.
    """
    from codexctl.client.threads import AmbiguousThread, UnknownThread, split_address

    records = _paired(home)
    if "://" in text and _LINK in text:
        text = text.partition(_LINK)[2]  # the link of a notification
    names = [name for record in records for name in (record.name, record.own_name)]
    host, name = split_address(text, names)
    if host is not None:
        return Place(need_host(home, host), name)
    if len(records) == 1:
        return Place(records[0], name)
    found = _remembered(home, records, name)
    if not found or len({thread.id for _, thread in found}) < len(found):
        # Nobody listed it, or it was listed by one host and then by another, to which it moved.
        found = _asked(home, records, name)
    if len(found) == 1:
        record, thread = found[0]
        # A name may be another thread's by now: the host knows.
        return Place(record, name if thread.name == name else thread.id)
    if not found:
        raise UnknownThread(name)
    listed = "\n".join(f"{r.name}:{t.id}  {t.name or t.preview}"[:100] for r, t in found[:8])
    raise AmbiguousThread(f"{name} could be {len(found)} threads", hint=f"name one of:\n{listed}")


def _paired(home: Home) -> list[HostRecord]:
    from codexctl.client.store import HostStore

    records = HostStore(home).paired()
    if not records:
        raise UsageError("no hosts yet", hint="pair with one: codexctl pair URL")
    return records


def _remembered(
    home: Home, records: Sequence[HostRecord], name: str
) -> list[tuple[HostRecord, Known]]:
    from codexctl.client.threads import matching, open_threads, remembered

    by_id = {record.environment_id: record for record in records}
    known = [thread for thread in remembered(open_threads(home)) if thread.host in by_id]
    return [(by_id[thread.host], thread) for thread in matching(known, name)]


def _asked(home: Home, records: Sequence[HostRecord], name: str) -> list[tuple[HostRecord, Known]]:
    from codexctl.client.threads import known, matching

    out: list[tuple[HostRecord, Known]] = []
    for record, threads in list_threads(home, records):
        rows = [known(record.environment_id, thread) for thread in threads]
        out += [(record, thread) for thread in matching(rows, name)]
    return out


def list_threads(
    home: Home, records: Sequence[HostRecord], *, archived: bool = False, limit: int = LISTED
) -> list[tuple[HostRecord, list[dict[str, Any]]]]:
    """Ask hosts for their threads, all at once, and remember them; who is away is told of."""
    from codexctl.client.agent import call
    from codexctl.client.threads import open_threads, remember

    params = {"archived": archived, "limit": limit}
    out = each_host(home, records, lambda c: call(c, "thread.list", params))
    if not archived:
        db = open_threads(home)
        for record, threads in out:
            remember(db, record.environment_id, threads)
    return out


def each_host(
    home: Home, records: Sequence[HostRecord], act: Callable[[Connection], T]
) -> list[tuple[HostRecord, T]]:
    """Do the same on hosts at once. A host that fails is left out, with a notice; all: raised."""
    from concurrent.futures import ThreadPoolExecutor

    from codexctl.client.connection import Connection
    from codexctl.state.identity import load_identity

    key = load_identity(home)

    def one(record: HostRecord) -> T | CodexctlError:
        try:
            with Connection.open(record, key) as connection:
                return act(connection)
        except CodexctlError as error:
            return error

    with progress("asking the hosts"), ThreadPoolExecutor(HOSTS_AT_ONCE) as pool:
        answers = list(pool.map(one, records))
    out: list[tuple[HostRecord, T]] = []
    for record, answer in zip(records, answers, strict=True):
        if not isinstance(answer, CodexctlError):
            out.append((record, answer))
        elif len(records) == 1:
            raise answer
        else:
            notice(f"{record.name} was left out: {answer}")
    return out


def hosts_of(home: Home, host: str | None) -> list[HostRecord]:
    """The named host, or all."""
    return [need_host(home, host)] if host else _paired(home)


@contextmanager
def at_thread(home: Home, text: str) -> Iterator[tuple[Connection, dict[str, Any]]]:
    """A connection with the thread's host, and the thread as the host has it now."""
    place = locate(home, text)
    with ExitStack() as stack:
        connection = stack.enter_context(at_host(home, place.record))
        elsewhere: Place | None = None
        try:
            thread = host_thread(home, connection, place.thread)
            elsewhere = _moved(home, thread)
        except CodexctlError as error:
            if error.code != "unknown-thread":
                raise
            # It may be elsewhere since it was remembered; the error stands where it is not.
            elsewhere = locate(home, text)
            if elsewhere.record == place.record:
                raise
        if elsewhere is not None:
            connection = stack.enter_context(at_host(home, elsewhere.record))
            thread = host_thread(home, connection, elsewhere.thread)
        yield connection, thread


def _moved(home: Home, thread: dict[str, Any]) -> Place | None:
    """Where a thread went that was handed off, if this device knows that host."""
    from codexctl.client.store import HostStore

    name = thread.get("moved_to")
    record = HostStore(home).find(str(name)) if name else None
    if record is None:
        return None
    notice(f"it has moved to {record.name}")
    return Place(record, str(thread["id"]))


@contextmanager
def at_host(home: Home, record: HostRecord) -> Iterator[Connection]:
    """A connection with a host; what waits for it in the outbox is delivered first."""
    with open_connection(home, record) as connection:
        from codexctl.cli.thread_deliver import deliver_waiting

        deliver_waiting(home, connection)
        yield connection


def host_thread(home: Home, connection: Connection, name: str) -> dict[str, Any]:
    """The thread object of the host; a thread that is gone there is forgotten here."""
    from codexctl.client.agent import call
    from codexctl.client.threads import forget, open_threads, remember

    host = connection.record.environment_id
    db = open_threads(home)
    try:
        thread = call(connection, "thread.show", {"thread": name, "limit": 0})[0]
    except CodexctlError as error:
        if error.code == "unknown-thread":
            forget(db, host, name)
        raise
    remember(db, host, [thread])
    return thread


def label(record: HostRecord, thread: dict[str, Any]) -> str:
    """A thread as it is shown: host, name or the beginning of its id, and whether it may all."""
    from codexctl.client.threads import SHORT_ID

    name = thread.get("name") or str(thread.get("id"))[:SHORT_ID]
    return f"{record.name}:{name}{'  ' + BYPASS if thread.get('bypass') else ''}"


BYPASS = "[asks nobody]"


def warn_of_bypass(thread: dict[str, Any]) -> None:
    """Say it wherever the thread is shown: what it does, it does without asking."""
    if thread.get("bypass"):
        notice(
            f"this thread asks nobody: sandbox {thread.get('sandbox')}, "
            f"approvals {thread.get('approval')}"
        )


def complete_thread(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Ids and names of threads that hosts have listed."""
    from click.shell_completion import CompletionItem

    from codexctl.client.threads import completions

    try:
        found = completions(Home.from_env(), incomplete)
    except CodexctlError:
        return []
    return [CompletionItem(value, help=text) for value, text in found]
