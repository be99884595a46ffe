"""Several hosts at once, with real child processes in place of hosts."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codexctl.client import fanout
from codexctl.client.fanout import run_fanout
from codexctl.errors import UsageError

DEADLINE_S = 30


def run(scripts: dict[str, str], **options: bool) -> tuple[int, str, str]:
    out, err = io.BytesIO(), io.BytesIO()
    status = run_fanout(
        list(scripts), lambda host: ["sh", "-c", scripts[host]], stdout=out, stderr=err, **options
    )
    return status, out.getvalue().decode(), err.getvalue().decode()


def test_lines_stand_behind_aligned_names_and_the_worst_status_is_returned() -> None:
    status, out, err = run({"a": "echo one; echo bad >&2", "longer": "printf two; exit 3"})
    assert status == 3
    assert sorted(out.splitlines()) == ["a      | one", "longer | two"]
    assert sorted(err.splitlines()) == ["a      | bad", "longer | [status 3]"]


def test_children_read_nothing() -> None:
    assert run({"a": "cat", "b": "cat"})[:2] == (0, "")


def test_a_host_that_fails_or_waits_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    # `b` waits for `c`, whose line must have been read although `a` has failed.
    status, out, _ = run(
        {
            "a": "exit 255",
            "b": f"read line <{tmp_path}/go; echo $line",
            "c": f"echo first; echo later >{tmp_path}/go",
        }
    )
    assert status == 255
    assert sorted(out.splitlines()) == ["b | later", "c | first"]


def test_a_child_that_a_signal_ended_is_128_and_more() -> None:
    assert run({"a": "kill -9 $$"})[0] == 137


def test_events() -> None:
    _, out, err = run({"a": "printf 'x\\377\\ny'; echo e >&2; exit 2"}, as_json=True)
    events = [json.loads(line) for line in out.splitlines()]
    assert {"host": "a", "stream": "stdout", "line": "x\ufffd"} in events
    assert {"host": "a", "stream": "stdout", "line": "y"} in events
    assert {"host": "a", "stream": "stderr", "line": "e"} in events
    assert events[-1] == {"host": "a", "status": 2}
    assert err == ""


def test_a_line_without_end_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MAX_LINE_BYTES", 1000)
    _, out, _ = run({"a": "head -c 2500 /dev/zero | tr '\\0' x"})
    assert [len(line) - 4 for line in out.splitlines()] == [1000, 1000, 500]


@pytest.mark.parametrize("hosts", [["a", "a"], [f"h{n}" for n in range(fanout.MAX_HOSTS + 1)]])
def test_wrong_lists_of_hosts(hosts: list[str]) -> None:
    with pytest.raises(UsageError):
        run_fanout(hosts, lambda host: ["true"])


FANOUT = """
import sys
from codexctl.client.fanout import run_fanout
scripts = dict(item.split("=", 1) for item in sys.argv[1:])
sys.exit(run_fanout(list(scripts), lambda host: ["sh", "-c", scripts[host]]))
"""


def test_ctrl_c_ends_all_and_the_second_does_not_wait() -> None:
    good = "trap 'echo stopped; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    bad = "trap '' INT TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, "-c", FANOUT, f"a={good}", f"b={bad}"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert sorted([process.stdout.readline(), process.stdout.readline()]) == [
            b"a | ready\n",
            b"b | ready\n",
        ]
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"a | stopped\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130


def test_a_reader_that_stops_holds_the_children_up() -> None:
    """What the children print waits in their pipes and not in memory."""
    with subprocess.Popen(
        [sys.executable, "-c", FANOUT, "a=yes", "b=yes"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() in (b"a | y\n", b"b | y\n")
        reader = threading.Thread(target=process.stdout.read)
        with open(f"/proc/{process.pid}/statm") as file:
            before = int(file.read().split()[1])
        process.terminate()
        reader.start()
        assert process.wait(DEADLINE_S) == 143
        reader.join()
        assert before * os.sysconf("SC_PAGESIZE") < 100 << 20
