"""The audit log: what is changed, cut out or cut off is found and named; no room, no command."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import Refused, StateError
from codexctl.host import audit
from codexctl.host.audit import FIRST, AuditLog, Tampered, check_chain, digest, verify
from codexctl.host.store import AuditHead, open_store, read_audit_head
from codexctl.paths import Home
from tests.host.conftest import Bench, Host


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home")).ensure()


def fill(home: Home, count: int) -> None:
    log = AuditLog(home)
    for number in range(count):
        log.append("exec", who="laptop", what=["echo", str(number)], outcome="started", where="/w")
    log.close()


def lines(home: Home) -> list[bytes]:
    return Path(home.audit_log).read_bytes().splitlines(keepends=True)


def rewrite(home: Home, new: list[bytes]) -> None:
    Path(home.audit_log).write_bytes(b"".join(new))


def test_records_are_chained_and_private(home: Home) -> None:
    fill(home, 3)
    records = [json.loads(line) for line in lines(home)]
    assert [record["n"] for record in records] == [1, 2, 3]
    assert records[0]["prev"] == FIRST
    assert records[2]["prev"] == records[1]["hash"] == digest(records[1])
    assert records[0]["what"] == ["echo", "0"]
    assert records[0]["time"].endswith("Z")
    assert stat.S_IMODE(os.stat(home.audit_log).st_mode) == 0o600
    assert verify(home) == (3, None, 0)
    db = open_store(home)
    assert read_audit_head(db) == AuditHead(3, records[2]["hash"])
    db.close()


def test_an_empty_home_has_nothing_to_verify(home: Home) -> None:
    assert verify(home) == (0, None, 0)
    assert os.listdir(home.path) == []


def test_what_was_changed_cut_out_or_cut_off(home: Home) -> None:
    fill(home, 5)
    good = lines(home)
    cases = [
        ([*good[:2], good[2].replace(b'"2"', b'"9"'), *good[3:]], Tampered(3, "was changed")),
        ([*good[:2], *good[3:]], Tampered(3, "is missing, 4 follows")),
        ([good[1], good[0], *good[2:]], Tampered(1, "is missing, 2 follows")),
        (good[:4], Tampered(5, "is missing: 5 were written")),
        ([], Tampered(1, "is missing: 5 were written")),
        ([*good[:4], good[4][:-20]], Tampered(5, "is not a record")),
        ([*good[:4], good[4][:-1]], Tampered(5, "is cut short")),
        ([*good[:3], b"{}\n", *good[3:]], Tampered(4, "is missing, None follows")),
        ([*good[:3], b"[]\n", *good[3:]], Tampered(4, "is not a record")),
    ]
    for changed, fault in cases:
        rewrite(home, changed)
        assert verify(home).fault == fault
        assert verify(home).records == fault.n - 1


def test_a_log_written_anew_does_not_fit_the_head(home: Home) -> None:
    fill(home, 3)
    forged = []
    previous = FIRST
    for n in range(1, 6):
        record = {"n": n, "kind": "exec", "prev": previous}
        record["hash"] = previous = digest(record)
        forged.append(json.dumps(record).encode() + b"\n")
    rewrite(home, forged)
    assert verify(home).fault == Tampered(3, "is not the one that was written")


def test_a_gap_stays_in_sight_when_the_log_goes_on(home: Home) -> None:
    fill(home, 5)
    good = lines(home)
    for cut in ([], good[:3], [*good[:4], good[4][:10]]):
        rewrite(home, cut)
        fill(home, 2)
        found = verify(home)
        assert found.fault is not None
        assert found.fault.n == min(len(cut) + 1, 5)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_changed_byte_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # One log for all examples: it is only read.
    folder = tmp_path_factory.getbasetemp() / "audit-bytes"
    home = Home(str(folder))
    if not folder.exists():
        fill(home.ensure(), 4)
    raw = bytearray(Path(home.audit_log).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))
    number = raw[:at].count(b"\n") + 1
    raw[at] = new
    db = open_store(home)
    head = read_audit_head(db)
    db.close()
    found = check_chain(iter(bytes(raw).splitlines(keepends=True)), head)
    if found.fault is None:
        # JSON has more than one way to write a record: its content is still the one written.
        before = [json.loads(line) for line in lines(home)]
        assert [json.loads(line) for line in bytes(raw).splitlines()] == before
    else:
        assert found.fault.n in (number, number + 1)


def test_several_processes_append(home: Home) -> None:
    code = (
        "import sys; from codexctl.paths import Home; from codexctl.host.audit import AuditLog\n"
        "log = AuditLog(Home(sys.argv[1]))\n"
        "for n in range(50): log.append('exec', who='x', what=n, outcome='started')\n"
        "log.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, home.path]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert verify(home) == (150, None, 0)


def test_a_record_is_bounded_and_holds_any_text(home: Home) -> None:
    log = AuditLog(home)
    log.append("exec", who="\ud800 \n \0", what=["x" * 200_000], outcome="started")
    log.append("exec", who="a", what="b", outcome="started")
    log.close()
    first = lines(home)[0]
    assert len(first) < audit.MAX_RECORD_BYTES
    assert b"(shortened)" in first
    assert verify(home) == (2, None, 0)


def test_a_full_disk_refuses_and_leaves_the_chain_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(home)
    log.append("exec", who="a", what="1", outcome="started")
    real = os.write
    written = []

    def full(fd: int, data: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(real(fd, data[:30]))
        return 30

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StateError, match="No space left on device") as caught:
            log.append("exec", who="a", what="2", outcome="started")
        assert "free some space" in caught.value.hint
        # A denial needs no room.
        log.append("exec", who="a", what="3", outcome="denied")
    log.append("exec", who="a", what="4", outcome="started")
    log.close()
    assert verify(home) == (2, None, 0)


@pytest.mark.usefixtures("sandboxed")
def test_a_command_that_cannot_be_recorded_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = bench.workspace / "mark"

    async def scenario(host: Host) -> None:
        real = os.open

        def full(path: str, *rest: int, **more: int) -> int:
            if path == bench.home.audit_log:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", full)
            done = await host.exec("touch", "mark")
        assert isinstance(done.error, Refused)
        assert "refuses what it cannot record" in done.error.message
        assert "No space left on device" in done.error.message
        assert not mark.exists()
        done = await host.exec("touch", "mark")
        assert done.error is None
        assert mark.exists()

    bench.run(scenario)


@pytest.mark.usefixtures("sandboxed")
def test_with_sync_each_a_command_waits_for_the_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.policy = '[audit]\nsync = "each"'
    mark = bench.workspace / "mark"
    synced = []

    def broken(fd: int) -> None:
        synced.append(mark.exists())
        raise OSError(errno.EIO, "Input/output error")

    async def scenario(host: Host) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            done = await host.exec("touch", "mark")
        assert isinstance(done.error, Refused)
        assert "Input/output error" in done.error.message
        assert synced[0] is False
        assert not mark.exists()

    bench.run(scenario)


def test_a_sync_that_fails_is_told_to_the_next(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SYNC_AFTER_S", 0.0)

    async def scenario() -> None:
        log = AuditLog(home)
        failing = True

        def fdatasync(fd: int) -> None:
            if failing:
                raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        log.append("exec", who="a", what="1", outcome="started")
        async with asyncio.timeout(10):
            while log._fault is None:
                await asyncio.sleep(0.005)
        with pytest.raises(StateError, match="Input/output error"):
            log.append("exec", who="a", what="2", outcome="started")
        failing = False
        async with asyncio.timeout(10):
            while log._fault is not None:
                await asyncio.sleep(0.005)
        log.append("exec", who="a", what="3", outcome="started")
        log.close()

    asyncio.run(scenario())
    assert verify(home).fault is None


@pytest.mark.usefixtures("sandboxed")
def test_what_is_recorded_of_a_command(bench: Bench) -> None:
    bench.policy = '[audit]\nargv = "programs-only"\nsync = "each"\n[programs]\ndeny = ["dd"]'

    async def scenario(host: Host) -> None:
        await host.exec("sh", "-c", "exit 3 # token-in-argv", env={"X": "value-of-env"})
        await host.exec("dd", "if=secret")
        channel = host.open("exec", shell="true # token-in-line")
        await channel.until(lambda: channel.closed)

    bench.run(scenario)
    text = Path(bench.home.audit_log).read_text()
    for secret in ("token-in-argv", "value-of-env", "if=secret", "token-in-line"):
        assert secret not in text
    records = [json.loads(line) for line in text.splitlines()]
    told = [(r["kind"], r["what"], r["outcome"]) for r in records]
    assert told[0] == ("exec", "sh", "started")
    assert told[1] == ("exit", records[0]["process"], "status 3")
    assert told[2] == ("exec", "dd", "denied")
    assert told[3] == ("exec", "a shell command line", "started")
    assert records[0]["who"] == "laptop"
    assert records[0]["device"] == "d1"
    assert records[0]["where"] == str(bench.workspace)
    assert records[0]["sandbox"] is True
    assert verify(bench.home).fault is None
