"""agent.db: events in order, one thread's or all; bounded, and the file gives the space back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from codexctl.agent.store import AgentStore
from codexctl.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home")).ensure()


def line(number: int, size: int = 0) -> str:
    return json.dumps({"method": "m", "params": {"n": number, "x": "x" * size}})


def test_events_come_back_as_they_were_written(home: Home) -> None:
    store = AgentStore(home)
    text = '{"method":"a/b","params":{"é":[1,  2]},"emittedAtMs":5}'
    store.append([("t1", text), (None, line(1)), ("t2", line(2))])
    (event,) = store.page("t1", 0)
    assert text[1:].encode() in event.encode()
    found = json.loads(event.encode())
    assert (found["cursor"], found["thread"], found["params"]) == (1, "t1", {"é": [1, 2]})
    assert [e.cursor for e in store.page(None, 1)] == [2, 3]
    store.close()
    assert AgentStore(home).last == 3


def test_pages_lead_through_everything_once(home: Home) -> None:
    store = AgentStore(home)
    store.append([("t", line(n, 5000)) for n in range(1500)])
    seen: list[int] = []
    while page := store.page("t", seen[-1] if seen else 0):
        seen += [event.cursor for event in page]
    assert seen == list(range(1, 1501))
    store.close()


def test_the_oldest_go_and_the_file_shrinks(home: Home) -> None:
    store = AgentStore(home)
    for start in range(0, 4000, 500):
        store.append([("t", line(n, 2000)) for n in range(start, start + 500)])
    store.prune(events=1000)
    assert (store.first(), store.last) == (3001, 4000)
    store.prune(events=1000, size=1_000_000)
    kept = sum(len(event.line) for event in store.page(None, 0))
    assert 900_000 < kept <= 1_000_000
    store.close()
    assert os.path.getsize(home.join("agent.db")) < 3_000_000
    # Cursors go on where they were, also when nothing is left.
    store = AgentStore(home)
    store.prune(events=0)
    assert store.first() == 4001
    store.append([("t", line(0))])
    assert store.last == 4001
    store.close()
    assert os.stat(home.join("agent.db")).st_mode & 0o777 == 0o600


def test_facts_and_keys_are_kept(home: Home) -> None:
    store = AgentStore(home)
    store.learn("t", turn="u", sandbox="read-only")
    store.learn("t", turn=None, name="n")
    assert store.facts("t") == {"sandbox": "read-only", "name": "n"}
    assert store.key("k") is None
    store.put_key("k", "thread.send", "t")
    store.put_key("k", "thread.send", "t", {"delivered": True})
    assert store.key("k") == ("thread.send", "t", {"delivered": True})
    store.close()


def test_approvals_of_one_second_keep_their_order(home: Home) -> None:
    store = AgentStore(home)
    names = [f"{number * 7 % 10}" for number in range(10)]
    for name in names:
        store.put_approval(name, "t", "pending", 1000, {"id": name})
    for name in names[5:]:
        store.put_approval(name, "t", "answered", 1000, {"id": name, "over": True})
    assert [record["id"] for record in store.approvals()] == names[::-1]
    ended = store.approvals(state="answered", limit=2)
    assert ended == [{"id": name, "over": True} for name in names[:-3:-1]]
    store.close()
