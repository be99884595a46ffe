"""Threads: how soon an event of the official app-server is on a watching device, and a replay.

The app-server stamps each notification with the millisecond in which it wrote it; the device looks
at the same clock when it has the event. Relay, host and device are processes of this checkout.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.row import Row
from codexctl.agent.store import AgentStore
from codexctl.client.agent import call, stream
from codexctl.paths import Home
from tests.support.codex import CODEX, Item, Request, say, serving_model
from tests.support.threads import ThreadDevice, ThreadHost

TURNS = 60
REPLAYED = 10_000
REPLAY_ROUNDS = 5
WARM = 20_000
DAY = 200_000  # events: about as many as a busy day of one person gives
DELTA = "some words of a message that the agent is writing "
OLD = "00000000-0000-7000-8000-000000000000"


def rows() -> list[Row]:
    if CODEX is None:
        sys.stderr.write("codex is not installed: nothing to measure of threads\n")
        return []
    with (
        tempfile.TemporaryDirectory(prefix="codexctl-bench-") as name,
        serving_model(talk) as model,
    ):
        folder = Path(name)
        host = ThreadHost(folder, model, before=fill)
        try:
            device = host.device("laptop")
            return [*latency(device), *replay(device), memory()]
        finally:
            host.close()


def talk(request: Request) -> list[Item]:
    return [say("heard")]


def delta(number: int) -> str:
    """An event as most are, of about 300 bytes."""
    params = {"threadId": OLD, "turnId": OLD, "itemId": f"msg_{number // 50}", "delta": DELTA}
    return json.dumps(
        {"method": "item/agentMessage/delta", "params": params, "emittedAtMs": 1_795_000_000_000}
    )


def fill(home: Path) -> None:
    """Events of an earlier thread, as the host finds them when it starts."""
    store = AgentStore(Home(str(home)).ensure())
    store.append([(OLD, delta(number)) for number in range(REPLAYED)])
    store.close()


def latency(device: ThreadDevice) -> list[Row]:
    times: list[float] = []
    with device.connected() as connection, device.connected() as other:
        thread = call(connection, "thread.start", {})[0]["id"]
        events = stream(other, "thread.watch", {"thread": thread, "follow": True, "cursor": "now"})
        next(events)  # it follows from here on
        for _ in range(TURNS):
            call(connection, "thread.send", {"thread": thread, "text": "hello"})
            for event in events:
                if "emittedAtMs" in event:
                    times.append(time.time() * 1000 - event["emittedAtMs"])
                if event["method"] == "turn/completed":
                    break
    times.sort()
    return [
        Row("an event from the app-server's line to a watching device, p50",
            statistics.median(times), "<= 20", "<= 5", "ms"),
        Row("the same, p95", times[int(len(times) * 0.95)], unit="ms"),
    ]  # fmt: skip


def replay(device: ThreadDevice) -> list[Row]:
    times = []
    for _ in range(REPLAY_ROUNDS):
        started = time.perf_counter()
        events = device.call("thread.watch", cursor=0)
        times.append(time.perf_counter() - started)
        assert len(events) > REPLAYED
    value = statistics.median(times)
    name = f"replay of {REPLAYED} events, connecting included"
    return [Row(name, value, "<= 1", "<= 0.5", "s")]


def memory() -> Row:
    """What a host's agent grows by while a day's worth of events comes from its app-server."""
    with tempfile.TemporaryDirectory(prefix="codexctl-bench-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.day", folder, str(WARM), str(DAY)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return Row(f"growth of a host's agent over {DAY} events", int(done.stdout) / 1024, "<= 16",
               "<= 4", "MiB")  # fmt: skip
