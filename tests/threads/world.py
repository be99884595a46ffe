"""A host with the real codex and a model that does what the last message says; devices beside it.

| message | the model |
|---|---|
| say TEXT | says TEXT |
| run COMMAND | runs it in the sandbox, then says `done` |
| ask COMMAND | runs it outside the sandbox, which needs approval, then says `done` |
| patch | changes a.txt and adds new.txt, then says `done` |
| question, permissions, greet | asks a person, as tests/agent/model.py does |
| fail | answers with an error |
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.agent.model import FEATURES
from tests.agent.model import script as asking
from tests.support.codex import (
    CODEX,
    Item,
    Model,
    Request,
    fail,
    make_codex_home,
    run_command,
    say,
    serving_model,
)
from tests.support.programs import Machine, Running

PATCH = """\
*** Begin Patch
*** Update File: a.txt
@@
-hello
+hello world
*** Add File: new.txt
+new
*** End Patch
"""


def script(request: Request) -> list[Item]:
    """The items of the model's answer."""
    last, after = "", 0
    for item in request["input"]:
        if item.get("type") == "message" and item.get("role") == "user":
            text = "".join(part.get("text", "") for part in item["content"])
            if not text.startswith("<"):
                last, after = text, 0
        elif item.get("type") == "function_call_output":
            after += 1
    verb, _, rest = last.partition(" ")
    # The app-server keeps one item of an id in a thread.
    number = len(request["input"])
    call = f"c{number}"
    if verb == "fail":
        return [fail("the model is told to fail")]
    if verb == "say" or after:
        return [{**say(rest if verb == "say" else "done"), "id": f"m{number}"}]
    if verb in ("question", "permissions", "greet"):
        return asking(request)
    if verb == "run":
        first = {**say(f"I run {rest.split()[0]}."), "id": f"m{number}"}
        return [first, run_command(rest, call=call)]
    if verb == "ask":
        why = {"sandbox_permissions": "require_escalated", "justification": "it needs the network"}
        return [run_command(rest, call=call, **why)]
    if verb == "patch":
        return [run_command(f"apply_patch <<'EOF'\n{PATCH}EOF\n", call=call)]
    return [{**say(f"you said: {last}"), "id": f"m{number}"}]


class Host:
    """`codexctl up` with the official codex on its login PATH, in a git repository."""

    def __init__(self, folder: Path, codex: Path, model: Model, name: str) -> None:
        """`codex` becomes the CODEX_HOME, which must not be below /tmp: no sandbox starts then."""
        assert CODEX is not None
        codex_home = make_codex_home(codex, model, approval="on-request", sandbox="workspace-write")
        with (codex_home / "config.toml").open("a") as file:
            file.write(FEATURES)
        person, programs = folder / "person", folder / "bin"
        person.mkdir()
        programs.mkdir()
        (programs / "codex").symlink_to(CODEX)
        path = f"{programs}:{os.environ['PATH']}"
        profile = f"export PATH='{path}' CODEX_HOME='{codex_home}'\n"
        (person / ".profile").write_text(profile)
        self.name = name
        self.machine = Machine(
            folder / "host",
            HOME=str(person),
            SHELL="/bin/sh",
            PATH=path,
            CODEX_HOME=str(codex_home),
        )
        self.work = self.machine.cwd
        (self.work / "a.txt").write_text("hello\n")
        for words in ("init -q -b main", "add .", "commit -qm start"):
            identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
            subprocess.run(["git", *identity, *words.split()], cwd=self.work, check=True)
        self.listen = "127.0.0.1:0"
        self.up: Running | None = None

    def start(self) -> Running:
        """Start it, on the same port as before."""
        assert self.up is None
        self.up = self.machine.start(
            "up", "--json", "--listen", self.listen, "--name", self.name,
            "--workspace", str(self.work),
        )  # fmt: skip
        relay = self.up.event("ready")["relay"]
        self.listen = relay.removeprefix("http://")
        return self.up

    def stop(self) -> None:
        if self.up is not None:
            up, self.up = self.up, None
            up.__exit__(None, None, None)

    def kill_app_server(self) -> None:
        """End the app-server with all it started, if one is left: it outlives the host a while."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            record = json.loads((self.machine.home / "app-server.json").read_text())
            os.killpg(record["pid"], signal.SIGKILL)

    def end(self) -> None:
        self.stop()
        self.kill_app_server()

    def pair(self, device: Machine) -> None:
        offer = json.loads(self.machine.run("pair", "--show", "--json").stdout)
        device.run("pair", offer["url"], "--name", self.name)


class World:
    """One host `box`, paired with a laptop and a phone; more hosts where a test wants them."""

    def __init__(self, folder: Path, outside: Path, model: Model) -> None:
        self.folder, self.outside = folder, outside
        self.model = model
        (folder / "box").mkdir()
        self.box = Host(folder / "box", outside / "box", model, "box")
        self.box.start()
        self.laptop = Machine(folder / "laptop")
        self.phone = Machine(folder / "phone")
        self.box.pair(self.laptop)
        self.box.pair(self.phone)

    def start(self, prompt: str, *options: str, check: int | None = 0) -> str:
        """Start a thread from the laptop; its id, once its turn has ended or asks."""
        done = self.laptop.run(
            "thread", "start", "box", prompt, "--json", "--wait", *options, check=check
        )
        thread: str = json.loads(done.stdout.splitlines()[0])["id"]
        return thread

    def pending(self, thread: str) -> dict[str, Any]:
        """The one approval that waits in the thread."""
        (found,) = [a for a in self.laptop.json("inbox") if a["thread"] == thread]
        return dict(found)


@contextmanager
def living(folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        model = stack.enter_context(serving_model(script))
        outside = tempfile.TemporaryDirectory(prefix="codexctl-test-", dir="/var/tmp")
        world = World(folder, Path(stack.enter_context(outside)), model)
        stack.callback(world.box.end)
        yield world
