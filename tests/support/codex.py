"""The official `codex` binary for tests, with a scripted model in place of an account.

`./dev test` installs the npm package into `.venv/codex`; CODEXCTL_TEST_CODEX names another one.
Mark what needs it with `needs_codex`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

INSTALLED = Path(__file__).parents[2] / ".venv" / "codex" / "node_modules" / ".bin" / "codex"
CODEX = (
    os.environ.get("CODEXCTL_TEST_CODEX")
    or (str(INSTALLED) if INSTALLED.exists() else None)
    or shutil.which("codex")
)
# On CI, where npm installed it, its absence is a failure.
needs_codex = pytest.mark.skipif(
    CODEX is None and not (os.environ.get("CI") and shutil.which("npm")),
    reason="the official codex is not installed (npm package @openai/codex)",
)
CONFIG = """\
model = "mock-model"
model_provider = "mock"
approval_policy = "{approval}"
sandbox_mode = "{sandbox}"
[model_providers.mock]
name = "Mock"
base_url = "{url}/v1"
wire_api = "responses"
requires_openai_auth = false
request_max_retries = 0
stream_max_retries = 0
"""

Item = dict[str, Any]
Request = dict[str, Any]
Script = Callable[[Request], list[Item]]


def say(text: str) -> Item:
    """The model says this, and ends its turn."""
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "id": "m", "content": content}


def fail(message: str) -> Item:
    """The model's answer ends in an error, and so does the turn."""
    return {"type": "failed", "message": message}


def run_command(command: str, *, call: str = "c", **arguments: Any) -> Item:
    """The model asks for a command; `sandbox_permissions="require_escalated"` asks for approval."""
    item: Item = {"type": "function_call", "id": f"f-{call}", "call_id": call}
    return {**item, "name": "exec_command", "arguments": json.dumps({"cmd": command, **arguments})}


def outputs(request: Request) -> list[str]:
    """What the commands of the conversation gave so far."""
    return [str(i["output"]) for i in request["input"] if i.get("type") == "function_call_output"]


class Model:
    """A model server on loopback. `script` gets each request and returns the items of its answer.

    A list of lists is one answer after another; the last one is given again when they run out.
    `requests` holds every request's body. A test may hold an answer back by clearing `go`.
    """

    def __init__(self, script: Script | list[list[Item]]) -> None:
        self.requests: list[Request] = []
        self.asked = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self._script = script
        self._lock = threading.Lock()
        self.url = ""

    def answer(self, request: Request) -> bytes:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
        self.asked.set()
        self.go.wait(60)
        if callable(self._script):
            items = self._script(request)
        else:
            items = self._script[min(number, len(self._script) - 1)]
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        events: list[dict[str, Any]] = [{"type": "response.created", "response": {"id": "r"}}]
        failed = [item["message"] for item in items if item["type"] == "failed"]
        events += [
            {"type": "response.output_item.done", "item": item}
            for item in items
            if item["type"] != "failed"
        ]
        if failed:
            error = {"code": "server_error", "message": failed[0]}
            events.append({"type": "response.failed", "response": {"id": "r", "error": error}})
        else:
            events.append({"type": "response.completed", "response": {"id": "r", "usage": usage}})
        return "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()


@contextlib.contextmanager
def serving_model(script: Script | list[list[Item]]) -> Iterator[Model]:
    """A model that listens while the block runs."""
    model = Model(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = self.path.endswith("/responses")
            answer = model.answer(json.loads(body)) if found else b""
            with contextlib.suppress(ConnectionError):
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    model.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield model
    finally:
        model.go.set()
        server.shutdown()
        server.server_close()
        thread.join()


def make_codex_home(
    folder: Path, model: Model, *, approval: str = "never", sandbox: str = "danger-full-access"
) -> Path:
    """A CODEX_HOME whose model is `model`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(url=model.url, approval=approval, sandbox=sandbox)
    (folder / "config.toml").write_text(text)
    return folder


def fake_codex(folder: Path, mode: str) -> dict[str, str]:
    """Variables whose `codex` does as a mode of tests/agent/fake_codex.py says."""
    program = folder / "bin" / "codex"
    program.parent.mkdir(exist_ok=True)
    script = Path(__file__).parents[1] / "agent" / "fake_codex.py"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "FAKE_CODEX": mode,
        "REAL_CODEX": str(CODEX),
        "HOME": str(folder),
    }


def codex_environment(codex_home: Path, **more: str) -> dict[str, str]:
    """The variables of an official process: little besides its home."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "CODEX_HOME": str(codex_home), "RUST_LOG": "off", **more}
