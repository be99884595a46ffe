"""Record docs/attach.cast: the official terminal UI on a thread of a host, from a real run.

    .venv/bin/python -m tests.attach.record

A relay, a host with the real codex and a scripted model, and a laptop with the real codex run for
it. What the laptop's terminal gets is written as an asciinema recording (version 2).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.attach.site import site
from tests.attach.terminal import TerminalProgram

CAST = Path(__file__).resolve().parents[2] / "docs" / "attach.cast"
COLUMNS, ROWS = 96, 30
PAUSE_MOST_S = 1.2
KEY_S = 0.05


def typed(ui: TerminalProgram, text: str) -> None:
    """Type as a person does."""
    for char in text:
        ui.type(char)
        time.sleep(KEY_S)
    ui.until(text)
    time.sleep(0.5)


def main() -> int:
    # Below /tmp the official codex warns about its home.
    with (
        TemporaryDirectory(prefix="codexctl-", dir="/var/tmp") as folder,
        site(Path(folder)) as place,
    ):
        ui = TerminalProgram(
            [sys.executable, "-m", "codexctl", "attach", "box"],
            env=place.laptop.environment, cwd=place.laptop.cwd, columns=COLUMNS, rows=ROWS,
        )  # fmt: skip
        with ui:
            ui.until("Trust and continue")
            time.sleep(1.0)
            ui.until("/status", typing="\r")
            time.sleep(1.0)
            typed(ui, "run uname -n; git log --oneline")
            ui.until("• done", typing="\r")
            time.sleep(1.0)
            typed(ui, "ask touch ../outside-the-workspace")
            ui.until("Would you like to run the following command", typing="\r")
            time.sleep(1.5)
            ui.until("approved", typing="y")
            time.sleep(1.5)
            ui.wait(typing="\x03")
        write(ui.chunks)
    return 0


def write(chunks: list[tuple[float, bytes]]) -> None:
    header = {
        "version": 2, "width": COLUMNS, "height": ROWS, "title": "codexctl attach box",
        "env": {"TERM": "xterm-256color", "SHELL": "/bin/bash"},
    }  # fmt: skip
    lines = [json.dumps(header)]
    now, before = 0.0, 0.0
    for text in ("$ ", *"codexctl attach box", "\r\n"):
        now += 0.06
        lines.append(json.dumps([round(now, 3), "o", text]))
    rest = b""
    for at, data in chunks:
        now += min(at - before, PAUSE_MOST_S)
        before = at
        data = rest + data
        whole = data.decode("utf-8", "ignore").encode()
        rest = data[len(whole) :] if data.startswith(whole) else b""
        lines.append(json.dumps([round(now, 3), "o", whole.decode()]))
    CAST.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
