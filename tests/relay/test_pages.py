"""What a browser, a scraper and a person at the log see."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from codexctl.relay.log import EventLog
from tests.relay.ends import data, frame, new_stream, run, serving


@pytest.mark.parametrize(
    ("path", "command"), [("/pair", b"codexctl pair"), ("/thread", b"codexctl thread watch")]
)
def test_a_link_opened_in_a_browser_says_what_to_run(
    tmp_path: Path, path: str, command: bytes
) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            answer = await ends.call("GET", f"{path}?x=1", token=None)
            assert answer.status == 200
            assert command in answer.body
            assert b"<script" not in answer.body
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-store"
            assert (await ends.call("POST", path, {}, token=None)).status == 404

    run(test)


def test_health_needs_no_token(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            answer = await ends.call("GET", "/v1/health", token=None)
            assert set(answer.json) == {"status", "version", "now"}
            head = await ends.call("HEAD", "/v1/health", token=None)
            assert head.status == 200
            assert head.body == b""
            assert head.headers["content-length"] == str(len(answer.body))

    run(test)


def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, device = await ends.host(), await ends.device()
            message = data(new_stream(), b"x" * 100)
            await device.send(message)
            await host.recv()
            answer = await ends.call("GET", "/metrics", token=None)
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            lines = answer.body.decode().splitlines()
            samples = dict(line.split(" ") for line in lines if not line.startswith("#"))
            assert samples["codexctl_relay_hosts"] == "1"
            assert samples["codexctl_relay_devices"] == "1"
            assert samples["codexctl_relay_streams"] == "1"
            assert samples["codexctl_relay_frames_total"] == "1"
            assert samples["codexctl_relay_forwarded_bytes_total"] == str(len(message))
            for name in samples:
                assert f"# HELP {name} " in answer.body.decode()
                kind = "counter" if name.endswith("_total") else "gauge"
                assert f"# TYPE {name} {kind}" in lines
                assert re.fullmatch(r"[a-z_]+", name)

    run(test)


@pytest.mark.parametrize(
    "headers",
    [
        ("X-Forwarded-For: 203.0.113.9",),
        ("Forwarded: for=203.0.113.9",),
        ("Host: rebound.example.org",),
        ("Host: rebound.example.org:80",),
    ],
)
def test_metrics_of_what_may_come_from_elsewhere_need_an_owners_token(
    tmp_path: Path, headers: tuple[str, ...]
) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            await ends.register()
            device, _ = await ends.device_token()
            for token in (None, "nonsense", device):
                answer = await ends.call("GET", "/metrics", token=token, headers=headers)
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            assert (await ends.call("GET", "/metrics", headers=headers)).status == 200

    run(test)


def test_the_log_tells_what_happened_and_no_secret(tmp_path: Path) -> None:
    stream = io.StringIO()
    secrets: list[str] = []

    async def test() -> None:
        async with serving(tmp_path, log=EventLog(as_json=True, stream=stream)) as ends:
            secrets.append(ends.token)
            registered, phone = await ends.register(), await ends.device_token()
            secrets.extend([phone[0], registered.json["url"].rpartition("/")[2]])
            host = await ends.socket(registered.json["url"])
            connected = await ends.connect("box", phone[0])
            secrets.append(connected.json["url"].rpartition("/")[2])
            secrets.append(connected.json["harness_key_authorization"])
            device = await ends.socket(connected.json["url"])
            payload = b"payload-that-nobody-logs"
            await device.send(data(new_stream(), payload))
            await host.recv()
            secrets.append(payload.decode())
            await device.send(b"\xffnot a frame")
            await device.wait_closed()
            await ends.call("GET", "/v1/socket/some-ticket", token=None)
            secrets.append("some-ticket")
            await host.send(frame(new_stream()))

    run(test)
    text = stream.getvalue()
    events = [json.loads(line) for line in text.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "started"
    assert names[-1] == "stopped"
    assert {"link-opened", "violation", "link-closed", "draining"} <= set(names)
    assert all(isinstance(event["time"], float) for event in events)
    for secret in secrets:
        assert secret not in text


def test_the_text_log_keeps_one_event_on_one_line() -> None:
    stream = io.StringIO()
    EventLog(as_json=False, stream=stream).event("opened", who="a\nb", note="two words", n=3)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ opened ", line)
    assert line.endswith('who="a\\nb" note="two words" n=3\n')


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    EventLog(as_json=True, stream=stream).event("opened")
