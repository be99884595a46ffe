"""The official agent on a laptop, its commands and edits on a codexctl host."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attach.site import Site, site
from tests.support.codex import (
    Item,
    Request,
    needs_codex,
    outputs,
    run_command,
    say,
    serving_model,
)
from tests.support.programs import COMMAND_TIMEOUT_S

pytestmark = needs_codex
WAIT_S = 60.0
PATCH = """\
*** Begin Patch
*** Update File: a.txt
@@
-hello
+hello from the laptop
*** Add File: made/new.txt
+new
*** End Patch
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("way3")) as made:
        (made.box.machine.home / "policy.toml").write_text('[programs]\ndeny = ["nproc"]\n')
        made.box.stop()
        made.box.start()
        made.laptop.run(
            "env", "box", "--environments-toml", "--folder", str(made.project)
        )  # fmt: skip
        yield made


def finish(place: Site, script: object, *, sandbox: str) -> list[str]:
    """One turn of the agent; what its commands gave."""
    with serving_model(script) as model:  # type: ignore[arg-type]
        agent = place.agent(model, sandbox=sandbox)
        _, said = agent.communicate(timeout=COMMAND_TIMEOUT_S)
        assert agent.returncode == 0, said.decode(errors="replace")[-2000:]
        return outputs(model.requests[-1])


@pytest.mark.parametrize("sandbox", ["danger-full-access", "workspace-write"])
def test_commands_and_edits_happen_on_the_host_in_its_sandbox(place: Site, sandbox: str) -> None:
    work = place.box.work
    (work / "a.txt").write_text("hello\n")
    (work / "made").mkdir(exist_ok=True)
    (work / "made" / "new.txt").unlink(missing_ok=True)
    secret = Path(place.box.machine.environment["HOME"]) / ".aws" / "credentials"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("top secret")
    said = finish(
        place,
        [
            [run_command("pwd; cat a.txt", call="c1")],
            [run_command(f"apply_patch <<'EOF'\n{PATCH}EOF\n", call="c2")],
            [run_command(f"cat {secret}; cat a.txt", call="c3")],
            [say("done")],
        ],
        sandbox=sandbox,
    )
    assert f"{work}\nhello\n" in said[0]
    assert "Success" in said[1]
    assert "top secret" not in said[2]
    assert "hello from the laptop" in said[2]
    assert (work / "a.txt").read_text() == "hello from the laptop\n"
    assert (work / "made" / "new.txt").read_text() == "new\n"
    assert list(place.project.iterdir()) == []


def test_the_hosts_policy_decides_and_the_agents_own_sandbox_holds(place: Site) -> None:
    said = finish(
        place,
        [
            [run_command("nproc && echo ran", call="c1")],
            [run_command("touch made-by-agent && echo ran", call="c2")],
            [say("done")],
        ],
        sandbox="read-only",
    )
    assert "ran" not in said[0].split()
    assert "ran" not in said[1].split()
    assert not (place.box.work / "made-by-agent").exists()


def test_a_process_outlives_the_connection(place: Site) -> None:
    began, go = place.box.work / "began", place.box.work / "go"
    command = "echo first; touch began; while [ ! -e go ]; do sleep 0.05; done; echo last"

    def script(request: Request) -> list[Item]:
        said = outputs(request)
        if not said:
            return [run_command(command)]
        running = re.search(r"session ID (\d+)", said[-1])
        if running is None:
            return [say("done")]
        arguments = json.dumps({"session_id": int(running[1]), "chars": ""})
        call = f"w{len(said)}"
        return [
            {"type": "function_call", "id": f"f-{call}", "call_id": call, "name": "write_stdin",
             "arguments": arguments}
        ]  # fmt: skip

    with serving_model(script) as model:
        agent = place.agent(model, sandbox="danger-full-access")
        deadline = time.monotonic() + WAIT_S
        while not began.exists():
            assert time.monotonic() < deadline, "the command does not start"
            time.sleep(0.02)
        place.tap.cut()
        go.touch()
        agent.communicate(timeout=COMMAND_TIMEOUT_S)
        said = "".join(outputs(model.requests[-1]))
    assert said.count("first") == 1
    assert said.count("last") == 1
    assert "exited with code 0" in said
    (row,) = [
        row
        for row in place.laptop.json("ps", "box")
        if row["command"][-1] == command
    ]  # fmt: skip
    assert row["exit"] == {"status": 0}


def test_what_cannot_be_reached_says_so(place: Site) -> None:
    done = place.laptop.run("exec-server", "nobody", check=255)
    assert b"no host is called nobody" in done.stderr
    done = place.laptop.run("exec-server", "box", "--folder", "/no/such/folder", check=2)
    assert b"is not a folder here" in done.stderr
