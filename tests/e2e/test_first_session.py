"""A transcript of a first session: from nothing on two machines to revocation and back."""

from __future__ import annotations

import json
import shlex
from fnmatch import fnmatchcase

from tests.e2e.conftest import Pair
from tests.support.programs import Machine


def see(
    machine: Machine, line: str, status: int = 0, out: str = "", err: str = "", stdin: bytes = b""
) -> str:
    """Run a command line; its stdout, which with its stderr has to fit patterns of whole texts."""
    done = machine.run(*shlex.split(line), input=stdin, check=status)
    printed, told = done.stdout.decode(), done.stderr.decode()
    assert fnmatchcase(printed, out), printed
    assert fnmatchcase(told, err), told
    return printed


def test_a_first_session(host: Pair) -> None:
    mine, theirs = host.device, host.host
    (theirs.cwd / "hello.txt").write_text("hello\n")

    # Nothing is paired yet, and that is said.
    see(mine, "hosts", err="codexctl: no hosts yet*")
    see(mine, "exec box -- true", 255, err="codexctl: no host is called box\nhint: *")

    # The host shows an offer, which the device takes; it works once.
    offer = host.up.event("pairing")
    url = offer["url"]
    assert set(offer) >= {"url", "code", "expires_in_s"}
    assert url.startswith(f"{host.relay}/pair#v=1&")
    assert 0 < offer["expires_in_s"] <= 300
    see(mine, f"pair '{url}' --name devbox", out="paired with devbox\n", err="*exec devbox*")
    see(mine, f"pair '{url}'", 255, err="codexctl: *it was used*\nhint: *pair --show\n")
    (listed,) = json.loads(see(mine, "hosts --json", out="*"))
    assert (listed["name"], listed["transport"], listed["online"]) == ("devbox", "relay", True)

    # Commands are as local ones: status, streams, stdin, arguments.
    see(mine, "exec devbox -- true")
    see(mine, "exec devbox -- sh -c 'exit 3'", 3)
    see(mine, "exec devbox -- sh -c 'kill -TERM $$'", 143)
    see(mine, "exec devbox -- no-such-program", 127, err="codexctl: no-such-program*\nhint: *")
    see(mine, "exec devbox -- ./hello.txt", 126, err="codexctl: *hello.txt*\nhint: *")
    both = "exec devbox -- sh -c 'cat; echo done >&2'"
    see(mine, both, stdin=b"some input", out="some input", err="done\n")
    see(mine, """exec devbox -- printf %s 'a  "b" $HOME *'""", out='a  "b" $HOME [*]')
    see(mine, "exec devbox -- 'cat hello.txt | tr a-z A-Z'", out="HELLO\n")
    see(mine, "exec devbos -- true", 255, err="codexctl: *\nhint: did you mean devbox?*")

    # The sandbox: the workspace is writable, the system is not.
    see(mine, "exec devbox -- 'echo made > made.txt'")
    assert (theirs.cwd / "made.txt").read_text() == "made\n"
    see(mine, "exec devbox -- touch /usr/made", 1, err="*Read-only file system\n")

    # What is left running is listed, and can be ended.
    process = see(mine, "exec --detach devbox -- sleep 600", out="*\n", err="*").strip()
    running = {found["process"]: found["state"] for found in mine.json("ps", "devbox")}
    assert running[process] == "running"
    see(mine, f"ps devbox --kill {process}")

    # Copies both ways.
    see(mine, "cp devbox:hello.txt mine.txt", out="*", err="*")
    assert (mine.cwd / "mine.txt").read_text() == "hello\n"
    see(mine, "cp mine.txt devbox:theirs.txt", out="*", err="*")
    assert (theirs.cwd / "theirs.txt").read_text() == "hello\n"

    # Every hop is well.
    assert {check["status"] for check in mine.json("doctor", "devbox")} == {"ok"}
    well = {check["name"]: check["status"] for check in theirs.json("doctor")}
    assert (well["sandbox"], well["host daemon"]) == ("ok", "ok")

    # The host revokes the device, which is told, and pairs again by one command.
    (device,) = theirs.json("devices")
    see(theirs, f"devices revoke {device['name']}", out="revoked *")
    see(mine, "exec devbox -- true", 255, err="codexctl: *\nhint: pair again: *")
    see(mine, f"pair '{host.offer()['url']}' --name devbox", out="*", err="*")
    see(mine, "exec devbox -- true")

    # All of it is on record.
    see(theirs, "audit verify", out="*none changed or missing*")
    kinds = {record["kind"] for record in theirs.json("audit", "list")}
    assert {"pairing", "exec", "revocation"} <= kinds
