"""Notices on their way: a real HTTP server, real commands, targets that fail and hang."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from codexctl.agent import notify_send
from codexctl.agent.notify import Notice
from codexctl.agent.notify_send import NotSent, send
from codexctl.agent.notify_service import Notifications
from codexctl.agent.notify_targets import (
    TargetRecord,
    add_target,
    all_targets,
    find_target,
    open_targets,
    remove_target,
)
from codexctl.errors import UsageError
from codexctl.paths import Home
from codexctl.secret import Secret

DEADLINE_S = 60.0
NOTICE = Notice(
    "approval:a1", "waiting", "t1", "box: fix it asks", "ls -l", "http://r/thread#box:t1"
)
THREAD = {"id": "01a1fdb6-c7e9-76d3-893e-feceaa6604ea", "name": "fix it"}
APPROVAL = {"id": "7f3a9c0d11aa22", "kind": "command", "command": "make", "reason": "to build"}


class Receiver:
    """An HTTP server that keeps what it is posted, and answers as it is told."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[str, dict[str, str], Any]] = queue.Queue()
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        self.url = ""

    def next(self) -> tuple[str, dict[str, str], Any]:
        return self.got.get(timeout=DEADLINE_S)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.put((self.path, dict(self.headers), body))
            receiver.hold.wait(DEADLINE_S)
            try:
                self.send_response(receiver.status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(b"not  today\n" if receiver.status >= 300 else b"{}")
            except ConnectionError:
                pass

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home")).ensure()


def target(kind: str, address: str = "", **more: Any) -> TargetRecord:
    fields = {"name": kind, "secret": None, "device": None, "always": False, **more}
    return TargetRecord(kind=kind, address=address, created_at=0, **fields)


def add(home: Home, *targets: TargetRecord) -> None:
    db = open_targets(home)
    for each in targets:
        add_target(db, each)
    db.close()


# --- one notice to one target ---


def test_ntfy_gets_its_own_json(receiver: Receiver) -> None:
    send(target("ntfy", f"{receiver.url}/mine", secret=Secret("tk_1")), NOTICE, "box")
    path, headers, body = receiver.next()
    value = json.loads(body)
    assert (path, headers["Authorization"]) == ("/", "Bearer tk_1")
    assert value["topic"] == "mine"
    assert value["title"] == NOTICE.title
    assert value["message"] == NOTICE.body
    assert value["click"] == NOTICE.link


def test_a_webhook_gets_signed_json(receiver: Receiver) -> None:
    send(target("webhook", f"{receiver.url}/hook?x=1", secret=Secret("s3cret")), NOTICE, "box")
    path, headers, body = receiver.next()
    assert path == "/hook?x=1"
    digest = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert headers["X-Codexctl-Signature"] == f"sha256={digest}"
    assert json.loads(body) == {**NOTICE._asdict(), "host": "box"}


@pytest.mark.parametrize(
    ("status", "for_good"), [(500, False), (429, False), (403, True), (302, True)]
)
def test_what_a_server_says_no_to(receiver: Receiver, status: int, for_good: bool) -> None:
    receiver.status = status
    with pytest.raises(NotSent, match=f"{status}.*not today") as caught:
        send(target("webhook", receiver.url), NOTICE, "box")
    assert caught.value.for_good is for_good


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(NotSent, match="not reached"):
        send(target("webhook", "http://127.0.0.1:1/"), NOTICE, "box")


def test_a_command_gets_json_and_its_failure_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = tmp_path / "program.py"
    program.write_text(f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())")
    send(target("command", f"{sys.executable} '{program}'"), NOTICE, "box")
    assert json.loads(out.read_text())["title"] == NOTICE.title
    with pytest.raises(NotSent, match="ended with 3: no way"):
        send(target("command", "sh -c 'echo no way >&2; exit 3'"), NOTICE, "box")
    with pytest.raises(NotSent, match="not started"):
        send(target("command", "/no/such/program"), NOTICE, "box")


def test_a_command_that_hangs_is_ended_with_all_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify_send, "COMMAND_S", 0.2)
    with pytest.raises(NotSent, match="was ended"):
        send(target("command", "sh -c 'sleep 1000 & sleep 1000'"), NOTICE, "box")


def test_the_desktop_is_told_by_its_own_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fake = tmp_path / "out", tmp_path / "bin" / "notify-send"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > '{out}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    send(target("desktop"), NOTICE._replace(title="--help"), "box")
    said = out.read_text().splitlines()
    assert said[-4:] == ["--", "--help", "ls -l", "http://r/thread#box:t1"]


# --- what is kept ---


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("ntfy", "https://ntfy.sh/"),
        ("ntfy", "ftp://x/y"),
        ("webhook", "https://me:secret@x/"),
        ("webhook", "nothing"),
        ("command", ""),
        ("command", "sh 'open"),
    ],
)
def test_addresses_that_are_none(home: Home, kind: str, address: str) -> None:
    with pytest.raises(UsageError):
        add(home, target(kind, address))


def test_targets_are_kept_with_their_secret_hidden(home: Home) -> None:
    add(home, target("webhook", "https://x/", secret=Secret("abc"), device="d1"))
    with pytest.raises(UsageError, match="already"):
        add(home, target("webhook", "https://y/"))
    db = open_targets(home)
    (found,) = all_targets(db)
    assert "abc" not in repr(found)
    assert found.secret == Secret("abc")
    remove_target(db, "webhook")
    with pytest.raises(UsageError, match="no target"):
        remove_target(db, "webhook")
    db.close()


# --- the service ---


async def serving(home: Home, act: Callable[[Notifications], None], until: asyncio.Event) -> None:
    service = Notifications(home, "box", "http://relay/")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(service.run())
        act(service)
        async with asyncio.timeout(DEADLINE_S):
            await until.wait()
        running.cancel()


def run_until(home: Home, act: Callable[[Notifications], None], over: Callable[[], bool]) -> None:
    """Run the service until the condition holds."""

    async def main() -> None:
        done = asyncio.Event()

        async def look() -> None:
            while not over():
                await asyncio.sleep(0.01)
            done.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(look())
            await serving(home, act, done)

    asyncio.run(main())


def sent(home: Home, name: str) -> Callable[[], bool]:
    db = open_targets(home)
    return lambda: find_target(db, name).sent_at is not None


def test_an_approval_is_told_with_a_link_and_not_again_after_a_restart(
    home: Home, receiver: Receiver
) -> None:
    add(home, target("webhook", receiver.url))
    run_until(home, lambda s: s.approval_requested(APPROVAL, THREAD), sent(home, "webhook"))
    value = json.loads(receiver.next()[2])
    assert value["title"] == "box: fix it asks to run a command"
    assert value["body"] == "make\nto build\ncodexctl thread approve 7f3a9c0d11aa2"
    assert value["link"] == f"http://relay/thread#box:{THREAD['id']}"
    add(home, target("ntfy", f"{receiver.url}/topic"))
    run_until(home, lambda s: s.approval_requested(APPROVAL, THREAD), sent(home, "ntfy"))
    assert json.loads(receiver.next()[2])["topic"] == "topic"
    assert receiver.got.empty()


def test_a_finished_thread_is_told_with_its_last_words(
    home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codexctl.agent.notify.SETTLE_S", 0.0)
    add(home, target("webhook", receiver.url))
    turn = {"id": "u1", "status": "completed", "items": [{"type": "agentMessage", "text": "Done."}]}

    def act(service: Notifications) -> None:
        service.turn_completed(THREAD, {"id": "u0", "status": "interrupted"})
        service.turn_completed(THREAD, turn)

    run_until(home, act, sent(home, "webhook"))
    value = json.loads(receiver.next()[2])
    assert (value["kind"], value["body"]) == ("finished", "Done.")
    assert receiver.got.empty()


def test_a_target_that_hangs_blocks_neither_the_others_nor_the_end(
    home: Home, receiver: Receiver
) -> None:
    with receiving() as hanging:
        hanging.hold.clear()
        add(home, target("ntfy", f"{hanging.url}/t"), target("webhook", receiver.url))
        run_until(home, lambda s: s.approval_requested(APPROVAL, THREAD), sent(home, "webhook"))
        hanging.next()


def test_why_a_target_failed_is_kept_until_it_works(home: Home, receiver: Receiver) -> None:
    receiver.status = 500
    add(home, target("webhook", receiver.url))
    db = open_targets(home)

    def failed() -> bool:
        return "500" in (find_target(db, "webhook").error or "")

    run_until(home, lambda s: s.approval_requested(APPROVAL, THREAD), failed)
    receiver.status = 200
    # What failed was not told: it is told after a restart.
    run_until(home, lambda s: s.approval_requested(APPROVAL, THREAD), sent(home, "webhook"))
    assert find_target(db, "webhook").error is None
    db.close()
