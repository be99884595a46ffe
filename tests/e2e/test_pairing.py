"""Pairing between real processes: what works once, what is refused, and what it burns."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from codexctl.wire.pairing_code import word_list
from codexctl.wire.pairing_url import format_url, parse_url
from tests.e2e.conftest import Pair
from tests.support.programs import Machine


def refusal(device: Machine, *arguments: str, status: int) -> str:
    """What a refused pairing says; nothing is kept of it."""
    done = device.run("pair", *arguments, check=status)
    text = done.stderr.decode()
    assert "hint:" in text
    assert device.json("hosts") == []
    return text


def test_a_url_pairs_once(host: Pair) -> None:
    url = host.up.event("pairing")["url"]
    host.device.run("pair", url)
    assert host.up.event("paired")["device"]
    other = Machine(host.folder / "other")
    assert "used" in refusal(other, url, status=255)
    (listed,) = host.host.json("devices")
    assert listed["scopes"] == ["approve", "exec", "view"]
    (known,) = host.device.json("hosts")
    assert (known["name"], known["transport"], known["online"]) == ("box", "relay", True)


def test_a_typed_code_pairs_and_the_words_may_be_typed_loosely(host: Pair) -> None:
    code = host.up.event("pairing")["code"]
    loosely = code.upper().replace("-", " ")
    host.device.run("pair", loosely, "--relay", host.relay, "--name", "mine")
    assert host.device.run("exec", "mine", "--", "echo", "hi").stdout == b"hi\n"
    # Its own name reaches it as well.
    assert host.device.run("exec", "box", "--", "echo", "hi").stdout == b"hi\n"


def test_a_wrong_code_burns_the_offer(host: Pair) -> None:
    event = host.up.event("pairing")
    number, *words = event["code"].split("-")
    wrong = next(word for word in word_list() if word != words[2])
    guess = "-".join([number, words[0], words[1], wrong])
    assert "wrong" in refusal(host.device, guess, "--relay", host.relay, status=255)
    assert host.up.event("pairing-burnt")["reason"] == "wrong code"
    assert refusal(host.device, event["code"], "--relay", host.relay, status=255)
    # The URL is the same offer.
    assert refusal(host.device, event["url"], status=255)
    (record,) = [r for r in host.host.json("audit", "list") if r["outcome"] == "burnt"]
    assert record["kind"] == "pairing"


def test_a_forged_url_is_refused_and_the_genuine_one_still_works(host: Pair) -> None:
    url = host.up.event("pairing")["url"]
    offer = parse_url(url)
    forged = format_url(offer._replace(token=bytes(16)))
    assert refusal(host.device, forged, status=255)
    other_key = format_url(offer._replace(host_key=b"\x09" + bytes(31)))
    assert "another key" in refusal(host.device, other_key, status=255)
    host.device.run("pair", url)


@pytest.mark.parametrize("cut", [5, 30, 60])
def test_a_truncated_url_is_refused_before_anything_is_asked(host: Pair, cut: int) -> None:
    url = host.up.event("pairing")["url"]
    assert refusal(host.device, url[:-cut], status=2)
    host.device.run("pair", url)


def test_an_expired_offer_is_refused(host: Pair) -> None:
    from codexctl.host.control import ask
    from codexctl.paths import Home

    short = ask(Home(str(host.host.home)), "pairing.create", {"ttl_s": 1})
    assert host.up.event("pairing-expired")["id"] == short["id"]
    text = refusal(host.device, short["url"], status=255)
    assert "expired" in text
    assert refusal(host.device, short["code"], "--relay", host.relay, status=255)


def test_scopes_bind(host: Pair) -> None:
    offer = host.offer("--scope", "view")
    host.device.run("pair", offer["url"])
    assert b"box" in host.device.run("hosts", "show", "box").stdout
    done = host.device.run("exec", "box", "--", "true", check=126)
    assert b"scope" in done.stderr
    outcomes = [(r["kind"], r["outcome"]) for r in host.host.json("audit", "list")]
    assert ("exec", "denied") in outcomes


def test_two_hosts_under_one_name(box: Pair, tmp_path: Path) -> None:
    second = Machine(tmp_path / "second")
    with second.start("up", "--json", "--listen", "127.0.0.1:0", "--name", "box") as up:
        url = up.event("pairing")["url"]
        done = box.device.run("pair", url, check=2)
        assert b"another host is called box" in done.stderr
        # Nothing was used up by that.
        box.device.run("pair", url, "--name", "box2")
        assert {h["name"] for h in box.device.json("hosts")} == {"box", "box2"}
        where = box.device.run("exec", "box2", "--", "pwd").stdout.decode().strip()
        assert where == str(second.cwd)


def test_revoking_cuts_a_running_command_and_pairing_again_takes_one_command(box: Pair) -> None:
    with box.device.start(
        "exec", "box", "--", "sh", "-c", """echo '{"event": "runs"}'; exec sleep 600"""
    ) as running:
        running.event("runs")
        (device,) = box.host.json("devices")
        answer = box.host.json("devices", "revoke", device["name"])
        assert answer["sessions_cut"] == 1
        assert running.process.wait(30) == 255
    assert b"revoked" in b"".join(running.errors)
    done = box.device.run("exec", "box", "--", "true", check=255)
    assert b"hint: " in done.stderr
    assert box.host.json("devices") == []
    box.device.run("pair", box.offer()["url"])
    box.device.run("exec", "box", "--", "true")


def test_an_unpaired_device_with_a_valid_relay_token_is_refused_by_the_host(box: Pair) -> None:
    stranger = Machine(box.folder / "stranger")
    stranger.home.mkdir()
    # A stolen list of hosts without the key that was paired.
    (stranger.home / "device.db").write_bytes((box.device.home / "device.db").read_bytes())
    done = stranger.run("exec", "box", "--", "true", check=255)
    assert b"does not know this device" in done.stderr


def test_a_host_that_restarts_keeps_its_devices(box: Pair) -> None:
    box.restart()
    assert box.device.run("exec", "box", "--", "echo", "again").stdout == b"again\n"


def test_pairing_again_replaces_the_earlier_one(box: Pair) -> None:
    box.device.run("pair", box.offer()["url"], "--name", "renamed")
    assert [h["name"] for h in box.device.json("hosts")] == ["renamed"]
    assert len(box.host.json("devices")) == 1


def test_an_offline_host_is_said_to_be_offline(box: Pair) -> None:
    # A relay of its own stays when the host goes.
    relay = Machine(box.folder / "relay")
    with relay.start("relay", "serve", "--json", "--listen", "127.0.0.1:0") as serving:
        url = serving.event("ready")["relay"]
        create = ("relay", "token", "create", "--name", "h", "--expires", "1d")
        second = Machine(box.folder / "second")
        second.environment["CODEXCTL_RELAY_TOKEN"] = relay.json(*create)["token"]
        with second.start("host", "serve", "--json", "--relay", url, "--name", "two") as host:
            host.event("ready")
            offer = json.loads(second.run("pair", "--show", "--json").stdout)
            box.device.run("pair", offer["url"])
        done = box.device.run("exec", "two", "--", "true", check=255)
        assert b"two cannot be reached" in done.stderr
        assert b"codexctl host serve" in done.stderr
        states = {h["name"]: h["online"] for h in box.device.json("hosts")}
        assert states == {"box": True, "two": False}


def test_no_daemon_no_offer(tmp_path: Path) -> None:
    done = Machine(tmp_path).run("pair", "--show", check=1)
    assert b"no host runs" in done.stderr
    assert b"codexctl host serve" in done.stderr


def test_a_relay_token_is_renewed_before_it_ends(box: Pair) -> None:
    import sqlite3

    def token() -> tuple[str, int]:
        db = sqlite3.connect(box.device.home / "device.db")
        try:
            row: tuple[str, int] = db.execute(
                "SELECT token, token_expires_at FROM hosts"
            ).fetchone()
            return row
        finally:
            db.close()

    first = token()
    box.device.run("exec", "box", "--", "true")
    assert token() == first
    db = sqlite3.connect(box.device.home / "device.db")
    with db:
        db.execute("UPDATE hosts SET token_expires_at = ?", (int(time.time()) + 86400,))
    db.close()
    box.device.run("exec", "box", "--", "true")
    renewed = token()
    assert renewed[0] != first[0]
    assert renewed[1] >= first[1]
    # Revoking ends both.
    box.host.run("devices", "revoke", box.host.json("devices")[0]["name"])
    states = {t["name"]: t["status"] for t in box.host.json("relay", "token", "list")}
    assert [s for n, s in states.items() if n != "up"] == ["revoked", "revoked"]
