"""Record docs/threads.cast and docs/threads.svg: a real `watch` beside a real `inbox`.

    .venv/bin/python -m tests.threads.record

A relay, a host with the real codex and a scripted model, and two devices run for it. What the
terminal of the one that watches gets is written as an asciinema recording (version 2), and its
last picture, with the inbox of the other device, as SVG by rich.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path

from tests.support.codex import Item, Request, run_command, say, serving_model
from tests.threads.screen import Screen
from tests.threads.terminal import Terminal
from tests.threads.world import World

DOCS = Path(__file__).resolve().parents[2] / "docs"
START = "codexctl thread start box 'fix the flaky test' --name 'flaky test' --watch"
COLUMNS, ROWS = 84, 30
PAUSE_MOST_S = 1.5  # of the recording: nobody wants to wait for a scripted model

TEST = """\
import time

def test_cache():
    started = time.monotonic()
    time.sleep(0.05)
    assert time.monotonic() - started < 0.05
"""
PATCH = """\
*** Begin Patch
*** Update File: test_cache.py
@@
-    assert time.monotonic() - started < 0.05
+    assert time.monotonic() - started < 0.5
*** End Patch
"""
RUN = "for n in 1 2 3; do echo test_cache.py run $n; sleep 0.4; done; echo '1 failed'; exit 1"


def script(request: Request) -> list[Item]:
    """A short piece of work that asks once."""
    done = sum(item.get("type") == "function_call_output" for item in request["input"])
    if done == 0:
        first = {**say("I run the test a few times to see how it fails."), "id": "m0"}
        return [first, run_command(RUN, call="c0", yield_time_ms=10000)]
    if done == 1:
        return [run_command(f"apply_patch <<'EOF'\n{PATCH}EOF\n", call="c1")]
    if done == 2:
        why = {
            "sandbox_permissions": "require_escalated",
            "justification": "the cache of pip is outside the workspace",
        }
        return [run_command("pip cache purge || true", call="c2", **why)]
    text = (
        "The test measured a sleep against the very time that it sleeps, so any load made it "
        "fail.\n\n- the bound is **0.5 s** now\n- the cache of pip is empty"
    )
    return [{**say(text), "id": "m3"}]


def record() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir="/var/tmp") as outside,
        serving_model(script) as model,
    ):
        world = World(Path(folder), Path(outside), model)
        try:
            (world.box.work / "test_cache.py").write_text(TEST)
            _play(world)
        finally:
            world.box.end()


def _play(world: World) -> None:
    words = ("thread", "start", "box", "fix the flaky test", "--name", "flaky test", "--watch")
    with Terminal(world.laptop, *words, columns=COLUMNS, rows=ROWS) as terminal:
        terminal.until("waiting for a person")
        with Terminal(world.phone, "inbox", columns=COLUMNS, rows=ROWS) as other:
            assert other.wait() == 0
            inbox = other.raw
        world.phone.run("thread", "approve", "flaky test", "--yes")
        terminal.until("turn done")
        terminal.type("\x03")
        terminal.wait()
    _write_cast(terminal.chunks)
    _write_svg(inbox, _picture(terminal.raw))


def _write_cast(chunks: list[tuple[float, bytes]]) -> None:
    header = {
        "version": 2, "width": COLUMNS, "height": ROWS,
        "title": START, "env": {"TERM": "xterm-256color"},
    }  # fmt: skip
    lines, at, before = [json.dumps(header)], 0.0, 0.0
    for when, data in chunks:
        at, before = at + min(when - before, PAUSE_MOST_S), when
        text = _neutral(data.decode(errors="replace"))
        lines.append(json.dumps([round(at, 3), "o", text], ensure_ascii=False))
    (DOCS / "threads.cast").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _neutral(text: str) -> str:
    """Without the names of the machine it was recorded on."""
    text = re.sub(r"/tmp/\S*?/host/work", lambda path: "/home/u/app".ljust(len(path[0])), text)
    return re.sub(r"\b\w+@[\w-]+", "phone", text)


def _picture(raw: str) -> str:
    """What the terminal shows at its end, with its colours."""
    screen = Screen()
    screen.feed(raw.replace("^C", ""))
    return "\n".join(screen.coloured())


def _write_svg(inbox: str, watch: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command, output in (("codexctl inbox", inbox), (START, watch)):
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(_neutral(output.replace("\r", "")).strip("\n")), end="\n\n")
    svg = console.export_svg(title="codexctl", unique_id="codexctl")
    # No fonts from anywhere: the page is to work without a network.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (DOCS / "threads.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    record()
