"""The exec-server of a host: processes, files, and the sandbox and policy around both."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from codexctl.errors import ProtocolError, Refused
from codexctl.host.audit import read_lines
from codexctl.host.execserver import service
from codexctl.session.channel import Peer
from tests.attach.rpc import Agent, Failed, url
from tests.host.conftest import Bench, Host

pytestmark = pytest.mark.usefixtures("sandboxed")


def restricted(*rules: tuple[str, str], network: str = "restricted") -> dict[str, Any]:
    """A permission profile as the official agent sends it; paths, or names of special places."""
    entries = []
    for place, access in rules:
        where: dict[str, Any] = {"type": "path", "path": url(place)}
        if not place.startswith("/"):
            kind, _, below = place.partition("/")
            special = {"kind": kind, **({"subpath": below} if below else {})}
            where = {"type": "special", "value": special}
        entries.append({"path": where, "access": access})
    system = {"type": "restricted", "entries": entries}
    return {"permissions": {"type": "managed", "file_system": system, "network": network}}


def in_folder(profile: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**profile, "cwd": url(folder), "workspaceRoots": [url(folder)]}


def test_a_process_from_start_to_end(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host)
        hello = await agent.call("initialize", clientName="test", resumeSessionId=None)
        info = hello["environmentInfo"]
        assert info["cwd"] == url(bench.workspace)
        assert info["shell"] == {"name": "sh", "path": "/bin/sh"}
        assert await agent.call("environment/info") == info
        script = "pwd; echo err >&2; exit 7"
        assert await agent.run("a", "sh", "-c", script) == (7, f"{bench.workspace}\nerr\n")
        events = [m["params"]["seq"] for m in agent.messages() if "method" in m]
        assert events == [1, 2, 3, 4]
        assert await agent.call("process/terminate", processId="a") == {"running": False}
        assert await agent.run("b", "sh", "-c", "kill -9 $$") == (137, "")
        await agent.end()
        assert agent.channel.exit == {"status": 0}
        kinds = [json.loads(line)["kind"] for line in read_lines(bench.home.audit_log)]
        assert kinds.count("exec-server") == 3

    bench.run(scenario)


def test_input_by_pipe_and_terminal(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host)
        chunk = base64.b64encode(b"line\n").decode()
        await agent.start("pipe", "cat", pipeStdin=True)
        for _ in range(2):  # what is sent again is written once
            said = await agent.call("process/write", processId="pipe", chunk=chunk, writeId="1")
            assert said == {"status": "accepted"}
        await agent.channel.until(lambda: agent.output("pipe"))
        await agent.call("process/signal", processId="pipe", signal="interrupt")
        await agent.channel.until(lambda: agent.told("pipe", "process/closed"))
        assert agent.output("pipe") == b"line\n"
        assert agent.told("pipe", "process/exited")[0]["exitCode"] == 130
        await agent.start("tty", "sh", "-c", "echo $TERM; exec cat", tty=True, env={"TERM": "dumb"})
        await agent.channel.until(lambda: agent.output("tty", "pty") == b"dumb\r\n")
        await agent.call("process/write", processId="tty", chunk=chunk, writeId="2")
        await agent.channel.until(lambda: agent.output("tty", "pty").count(b"line") == 2)
        assert await agent.call("process/terminate", processId="tty") == {"running": True}
        await agent.channel.until(lambda: agent.told("tty", "process/closed"))
        await agent.start("none", "sleep", "60")
        said = await agent.call("process/write", processId="none", chunk=chunk, writeId="3")
        assert said == {"status": "stdinClosed"}
        said = await agent.call("process/write", processId="nobody", chunk=chunk, writeId="4")
        assert said == {"status": "unknownProcess"}
        await agent.end()

    bench.run(scenario)


def test_what_was_missed_can_be_read(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host)
        await agent.start("a", "sh", "-c", "echo one; read x; echo two", pipeStdin=True)
        first = await agent.call("process/read", processId="a", afterSeq=0, waitMs=30000)
        assert [base64.b64decode(c["chunk"]) for c in first["chunks"]] == [b"one\n"]
        assert (first["nextSeq"], first["exited"], first["closed"]) == (2, False, False)
        waiting = agent.ask("process/read", processId="a", afterSeq=1, waitMs=30000)
        chunk = base64.b64encode(b"\n").decode()
        await agent.call("process/write", processId="a", chunk=chunk, writeId="w")
        await agent.channel.until(lambda: agent.answer(waiting))
        await agent.channel.until(lambda: agent.told("a", "process/closed"))
        all_of_it = await agent.call("process/read", processId="a")
        assert [c["seq"] for c in all_of_it["chunks"]] == [1, 2]
        assert (all_of_it["exitCode"], all_of_it["closed"]) == (0, True)
        some = await agent.call("process/read", processId="a", maxBytes=1)
        assert [c["seq"] for c in some["chunks"]] == [1]
        assert some["nextSeq"] == 2
        await agent.end()

    bench.run(scenario)


def test_output_is_whole_and_waits_for_a_slow_agent(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host, credit=1 << 16)
        agent.ask(
            "process/start", processId="a", argv=["head", "-c", "3000000", "/dev/zero"],
            cwd=url(bench.workspace), env={}, tty=False,
        )  # fmt: skip
        while not agent.told("a", "process/closed"):
            agent.channel.grant(1 << 18)
            size = len(agent.channel.output[1])
            await agent.channel.until(
                lambda size=size: (
                    len(agent.channel.output[1]) >= size + (1 << 18)
                    or agent.told("a", "process/closed")
                )
            )
        assert agent.output("a") == bytes(3000000)
        await agent.end()

    bench.run(scenario)


def test_credentials_programs_and_folders_by_the_hosts_rules(bench: Bench) -> None:
    bench.policy = '[programs]\ndeny = ["nproc"]\n[environment]\naccept = ["OK"]\n'
    secret = bench.person / ".ssh" / "id_ed25519"
    secret.parent.mkdir()
    secret.write_text("secret key")
    elsewhere = bench.folder / "elsewhere"
    elsewhere.mkdir()

    async def scenario(host: Host) -> None:
        agent = Agent(host)
        status, said = await agent.run("a", "cat", str(secret))
        assert status != 0
        assert "secret" not in said
        with pytest.raises(Failed) as failed:
            await agent.call("fs/readFile", path=url(secret), sandbox=None)
        assert failed.value.code == -32004
        with pytest.raises(Failed, match="denies nproc"):
            await agent.start("b", "nproc")
        _, said = await agent.run("c", "sh", "-c", "nproc", env={"OK": "1", "LD_PRELOAD": "x"})
        assert "denied" in said
        with pytest.raises(Failed, match="outside the workspace"):
            await agent.start("d", "true", cwd=url(elsewhere))
        with pytest.raises(Failed, match=r"is no folder on host.*--folder /nowhere"):
            await agent.start("e", "true", cwd="file:///nowhere")
        data = base64.b64encode(b"x").decode()
        with pytest.raises(Failed, match="outside the workspace"):
            await agent.call("fs/writeFile", path=url(elsewhere / "x"), dataBase64=data)
        os.symlink(elsewhere, bench.workspace / "way-out")
        with pytest.raises(Failed, match="outside the workspace"):
            await agent.call("fs/writeFile", path=url(bench.workspace / "way-out" / "x"),
                             dataBase64=data)  # fmt: skip
        with pytest.raises(Failed) as failed:
            await agent.start("f", "no-such-program")
        assert failed.value.code == -32004
        assert list(elsewhere.iterdir()) == []
        await agent.end()
        lines = [json.loads(line) for line in read_lines(bench.home.audit_log)]
        denied = [line["kind"] for line in lines if line["outcome"] == "denied"]
        assert denied == ["exec-server"] * 3 + ["file"] * 2 + ["exec-server"]

    bench.run(scenario)


def test_the_agents_own_limits_hold_too(bench: Bench) -> None:
    sub, other = bench.workspace / "sub", bench.workspace / "other"
    for folder in (sub / ".git", other):
        folder.mkdir(parents=True)
    (other / "hidden").write_text("hidden text")
    write = "for f in sub/a sub/.git/a other/a; do { echo x > $f; } 2>/dev/null && echo $f; done; :"

    async def scenario(host: Host) -> None:
        agent = Agent(host)
        _, said = await agent.run("all", "sh", "-c", write, sandbox=None)
        assert said.split() == ["sub/a", "sub/.git/a", "other/a"]
        project = in_folder(
            restricted(
                ("root", "read"), ("project_roots", "write"), ("slash_tmp", "write"),
                ("project_roots/.git", "read"),
            ),
            sub,
        )  # fmt: skip
        _, said = await agent.run("project", "sh", "-c", write, sandbox=project)
        assert said.split() == ["sub/a"]
        reading = in_folder(restricted(("root", "read"), (str(other / "hidden"), "none")), sub)
        script = f"{write[:-3]}; cat other/a other/hidden"
        _, said = await agent.run("reading", "sh", "-c", script, sandbox=reading)
        assert said.startswith("x\n")
        assert "hidden text" not in said
        data = base64.b64encode(b"y").decode()
        for profile, path, works in (
            (project, sub / "a", True),
            (project, sub / ".git" / "a", False),
            (project, other / "a", False),
            (reading, sub / "a", False),
            (None, other / "a", True),
        ):
            call = {"path": url(path), "dataBase64": data, "sandbox": profile}
            if works:
                await agent.call("fs/writeFile", **call)
            else:
                with pytest.raises(Failed, match="Read-only"):
                    await agent.call("fs/writeFile", **call)
        await agent.end()

    bench.run(scenario)


def test_the_network_is_given_where_agent_and_host_agree(bench: Bench) -> None:
    script = "wc -l < /proc/net/dev"  # two lines of heading, and one an interface

    async def interfaces(host: Host, profile: dict[str, Any] | None) -> int:
        agent = Agent(host)
        _, said = await agent.run("a", "sh", "-c", script, sandbox=profile)
        await agent.end()
        return int(said)

    whole = ("root", "write")
    restrictive = in_folder(restricted(whole), bench.workspace)
    open_ = in_folder(restricted(whole, network="enabled"), bench.workspace)

    async def scenario(host: Host) -> None:
        here = len(Path("/proc/net/dev").read_text().splitlines())
        assert await interfaces(host, open_) == here
        assert await interfaces(host, None) == here
        assert await interfaces(host, restrictive) == 3

    bench.run(scenario)
    bench.policy = '[network]\nmode = "never"\n'

    async def never(host: Host) -> None:
        assert await interfaces(host, open_) == 3

    bench.run(never)


def test_files(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host)
        here = url(bench.workspace)
        data = base64.b64encode(b"hello").decode()
        with pytest.raises(Failed) as failed:
            await agent.call("fs/getMetadata", path=f"{here}/a")
        assert failed.value.code == -32004
        await agent.call("fs/writeFile", path=f"{here}/a%20b", dataBase64=data)
        assert (bench.workspace / "a b").read_bytes() == b"hello"
        found = await agent.call("fs/getMetadata", path=f"{here}/a%20b")
        assert (found["isFile"], found["isDirectory"], found["size"]) == (True, False, 5)
        assert await agent.call("fs/readFile", path=f"{here}/a%20b") == {"dataBase64": data}
        await agent.call("fs/createDirectory", path=f"{here}/d/e", recursive=True)
        await agent.call(
            "fs/copy", sourcePath=f"{here}/a%20b", destinationPath=f"{here}/d/c", recursive=False
        )
        os.symlink("d", bench.workspace / "link")
        listed = await agent.call("fs/readDirectory", path=here)
        assert {e["fileName"]: e["isDirectory"] for e in listed["entries"]} == {
            "a b": False, "d": True, "link": True,
        }  # fmt: skip
        options = {"maxDepth": 5, "maxDirectories": 9, "maxEntries": 9}
        walked = await agent.call("fs/walk", path=here, options=options)
        assert [(e["path"].removeprefix(here), e["kind"]) for e in walked["entries"]] == [
            ("/a%20b", "file"), ("/d", "directory"), ("/d/c", "file"), ("/d/e", "directory"),
        ]  # fmt: skip
        cut = await agent.call("fs/walk", path=here, options={**options, "maxEntries": 1})
        assert (len(cut["entries"]), cut["truncated"]) == (1, True)
        assert await agent.call("fs/canonicalize", path=f"{here}/link") == {"path": f"{here}/d"}
        await agent.call("fs/open", handleId="h", path=f"{here}/d/c")
        block = await agent.call("fs/readBlock", handleId="h", offset=1, len=3)
        assert block == {"chunk": base64.b64encode(b"ell").decode(), "eof": False}
        block = await agent.call("fs/readBlock", handleId="h", offset=4, len=30)
        assert block["eof"] is True
        await agent.call("fs/close", handleId="h")
        with pytest.raises(Failed, match="no such file handle"):
            await agent.call("fs/readBlock", handleId="h", offset=0, len=1)
        os.mkfifo(bench.workspace / "pipe")
        with pytest.raises(Failed, match="not a file"):
            await agent.call("fs/readFile", path=f"{here}/pipe")
        with pytest.raises(Failed, match="not empty"):
            await agent.call("fs/remove", path=f"{here}/d", recursive=False)
        await agent.call("fs/remove", path=f"{here}/d", recursive=True)
        await agent.call("fs/remove", path=f"{here}/d")
        with pytest.raises(Failed):
            await agent.call("fs/remove", path=f"{here}/d", force=False)
        with pytest.raises(Failed) as failed:
            await agent.call("fs/watchMissing", missing=[])
        assert failed.value.code == -32601
        await agent.end()

    bench.run(scenario)


def test_a_folder_of_the_agents_machine_stands_for_the_workspace(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host, folder="/home/me/project")
        info = await agent.call("environment/info")
        assert info["cwd"] == "file:///home/me/project"
        status, said = await agent.run("a", "pwd", cwd="file:///home/me/project")
        assert (status, said) == (0, f"{bench.workspace}\n")
        data = base64.b64encode(b"x").decode()
        await agent.call("fs/writeFile", path="file:///home/me/project/new", dataBase64=data)
        assert (bench.workspace / "new").exists()
        walked = await agent.call("fs/walk", path="file:///home/me/project", options={})
        assert [e["path"] for e in walked["entries"]] == ["file:///home/me/project/new"]
        # The forms of older agents: plain paths.
        assert (await agent.call("fs/getMetadata", path="/home/me/project/new"))["isFile"]
        found = await agent.call("fs/canonicalize", path="/home/me/project/new")
        assert found == {"path": "/home/me/project/new"}
        await agent.end()

    bench.run(scenario)


def test_processes_of_an_agent_that_ends_and_of_one_that_is_lost(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host)
        await agent.start("a", "sleep", "600")
        (row,) = host.context.processes.rows()
        await agent.end()
        process = host.context.processes.get(row["process"])
        await host.until(lambda: not process.running)

        lost = Agent(host)
        await lost.start("b", "sh", "-c", "echo before; read x; echo after", pipeStdin=True)
        await lost.channel.until(lambda: lost.output("b"))
        lost.channel.lose()
        (row,) = [r for r in host.context.processes.rows() if r["state"] == "running"]
        await host.until(lambda: host.context.processes.get(row["process"]).attachment is None)
        late = host.open("attach", process=row["process"])
        late.input(b"\n")
        await late.until(lambda: late.closed)
        assert bytes(late.output[1]).endswith(b"after\n")

    bench.run(scenario)


def test_another_device_takes_a_process_over(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host)
        await agent.start("a", "cat", pipeStdin=True)
        (row,) = host.context.processes.rows()
        taken = host.open("attach", process=row["process"])
        await agent.channel.until(lambda: agent.told("a", "process/closed"))
        assert b"taken this process over" in agent.output("a", "stderr")
        taken.end_input()
        await taken.until(lambda: taken.closed)
        assert taken.exit == {"status": 0}
        await agent.end()

    bench.run(scenario)


def test_a_device_without_the_scope(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        agent = Agent(host, Peer("d3", "viewer", frozenset({"view"})))
        await agent.channel.until(lambda: agent.channel.closed)
        assert isinstance(agent.channel.error, Refused)

    bench.run(scenario)


def test_nonsense_is_answered_and_the_rest_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_LINE_BYTES", 10_000)
    start = {"processId": "x", "argv": ["true"], "cwd": "file:///", "env": {}, "tty": False}

    async def scenario(host: Host) -> None:
        agent = Agent(host)
        for line in (b"{", b"[]", b"[" * 5000, b'{"id":1}', b'{"method":7}', b"\xff"):
            before = len(agent.messages())
            agent.write(line + b"\n")
            await agent.channel.until(lambda before=before: len(agent.messages()) > before)
            assert agent.messages()[-1]["error"]["code"] == -32600
        agent.write(b'{"method":"initialized"}\n')
        for method, params in (
            ("no/such", {}),
            ("initialize", {"resumeSessionId": "x"}),
            ("process/start", {**start, "argv": []}),
            ("process/start", {**start, "argv": "true"}),
            ("process/start", {**start, "cwd": "http://x/"}),
            ("process/start", {**start, "cwd": "file://elsewhere/"}),
            ("process/start", {**start, "env": {"A": 1}}),
            ("process/start", {**start, "env": {"A=B": "1"}}),
            ("process/start", {**start, "arg0": "other"}),
            ("process/start", {**start, "sandbox": {"sandboxPolicy": {}}}),
            ("process/start", {**start, "enforceManagedNetwork": True}),
            ("process/start", {**start, "envPolicy": {"inherit": "some"}}),
            ("process/write", {"processId": "x", "chunk": "%"}),
            ("process/read", {"processId": "x"}),
            ("process/signal", {"processId": "x", "signal": "kill"}),
            ("fs/readFile", {"path": "relative"}),
            ("fs/readFile", {}),
            ("fs/writeFile", {"path": url(bench.workspace / "a"), "dataBase64": "%"}),
            ("fs/writeFile", {"path": url(bench.workspace / "a")}),
            ("fs/writeFile", {"path": url(bench.workspace / "a"), "dataBase64": 7}),
            ("fs/walk", {"path": url(bench.workspace / "nothing"), "options": 7}),
            ("fs/readBlock", {"handleId": 7}),
        ):
            if method == "process/write":
                assert await agent.call(method, **params) == {"status": "unknownProcess"}
                continue
            with pytest.raises(Failed):
                await agent.call(method, **params)
        assert await agent.run("a", "echo", "still here") == (0, "still here\n")
        with pytest.raises(Failed, match="already exists"):
            await agent.start("a", "true")
        agent.write(b"x" * 20_000)
        await agent.channel.until(lambda: agent.channel.closed)
        assert isinstance(agent.channel.error, ProtocolError)

    bench.run(scenario)
