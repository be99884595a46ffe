"""`codexctl host policy`, `host install` and `audit`, as a person runs them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from codexctl.cli.main import run
from codexctl.host.audit import AuditLog
from codexctl.paths import Home


class Terminal:
    """Runs command lines and keeps what they print."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = Home(str(home)).ensure()
        self._capsys = capsys

    def __call__(self, line: str) -> tuple[int, str, str]:
        status = run(line.split())
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def json(self, line: str) -> object:
        status, out, err = self(f"{line} --json")
        assert (status, err) == (0, "")
        return json.loads(out)


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("CODEXCTL_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CODEXCTL_RELAY_TOKEN", raising=False)
    return Terminal(tmp_path / "state", capsys)


def test_policy_check(terminal: Terminal, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert terminal(f"host policy check --system {none}")[:2] == (
        0, "good: no policy file, so all defaults\n",
    )  # fmt: skip
    file = Path(terminal.home.policy)
    file.write_text("[sandbox]\nmode = 'optional'\n")
    assert terminal(f"host policy check --system {none}")[1] == f"good: {file}\n"
    assert terminal(f"host policy check {file}")[1] == f"{file} is good: it sets sandbox.mode\n"
    file.write_text("[sandbox]\n\nmode = 1\n")
    for line in (f"host policy check {file}", "host policy check", "host policy show"):
        status, out, err = terminal(line)
        assert (status, out) == (1, "")
        assert f"codexctl: {file} line 3: sandbox.mode has to be" in err
        assert "hint: mend it" in err
    assert terminal(f"host policy check {none}")[0] == 1


def test_policy_show(terminal: Terminal, tmp_path: Path) -> None:
    system = tmp_path / "system.toml"
    system.write_text("[network]\nmode = 'never'\n")
    Path(terminal.home.policy).write_text("[programs]\ndeny = ['rm']\nallow = []\n")
    shown = terminal.json(f"host policy show --system {system}")
    assert isinstance(shown, dict)
    assert shown["network.mode"] == [{"value": "never", "source": f"{system}:2"}]
    assert shown["programs.allow"] == []
    assert shown["workspace.roots"] is None
    text = terminal(f"host policy show --system {system}")[1]
    assert f"    never    [{system}:2]\n" in text
    assert f"    rm    [{terminal.home.policy}:2]\n" in text
    assert "unset: all)\n    none\n" in text
    assert "unset: the host's workspace)\n    not set\n" in text


def test_install_wants_a_relay_and_a_token(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name the relay with --relay URL" in terminal("host install")[2]
    status, _, err = terminal("host install --relay http://r")
    assert status == 2
    assert "the relay's token is missing" in err
    assert terminal("host install --relay http://r --token-file missing")[0] == 2
    monkeypatch.setenv("CODEXCTL_RELAY_TOKEN", "s3cret")
    monkeypatch.chdir(tmp_path)
    status, out, err = terminal("host install --relay http://r --name box --dry-run")
    assert status == 0
    assert '"--relay" "http://r" "--token-file"' in out
    assert "s3cret" not in out + err
    assert not (tmp_path / "config").exists()
    assert not (tmp_path / "state" / "relay.token").exists()


def test_install_keeps_the_token_private(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEXCTL_RELAY_TOKEN", "s3cret")
    monkeypatch.setattr("codexctl.host.service._run_all", lambda commands: [])
    workspace = tmp_path / "ws"
    workspace.mkdir()
    status, out, _ = terminal(f"host install --relay http://r --name box --workspace {workspace}")
    assert status == 0
    assert "installed " in out
    token = tmp_path / "state" / "relay.token"
    assert token.read_text() == "s3cret\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    units = list((tmp_path / "config/systemd/user").iterdir())
    assert len(units) == 1
    assert "removed" in terminal("host install --uninstall")[1]
    assert "there is no service" in terminal("host install --uninstall")[1]


@pytest.fixture
def records(terminal: Terminal) -> Path:
    log = AuditLog(terminal.home)
    log.append("pairing", who="laptop", what="d1", outcome="paired")
    log.append("exec", who="laptop", what=["sh", "-c", "a b"], outcome="started", where="/w")
    log.append("exec", who="phone", what="x" * 500, outcome="denied", where="/w")
    log.close()
    return Path(terminal.home.audit_log)


def test_audit_list(terminal: Terminal, records: Path) -> None:
    lines = terminal("audit list")[1].splitlines()
    assert lines[0].split() == ["N", "TIME", "KIND", "WHO", "WHAT", "WHERE", "OUTCOME"]
    assert "sh -c 'a b'" in lines[2]
    assert max(map(len, lines)) < 200
    listed = terminal.json("audit list --kind exec --who laptop")
    assert isinstance(listed, list)
    assert [record["n"] for record in listed] == [2]
    assert len(terminal.json("audit list --last 1")) == 1  # type: ignore[arg-type] # a list
    assert terminal("audit list --who nobody")[1:] == ("", "codexctl: no records\n")


def test_audit_verify_and_export(terminal: Terminal, records: Path) -> None:
    assert terminal("audit verify")[:2] == (0, "3 records, none changed or missing\n")
    assert terminal("audit export --format jsonl")[1].encode() == records.read_bytes()
    records.write_bytes(records.read_bytes().replace(b'"denied"', b'"started"'))
    assert terminal("audit verify")[:2] == (1, "record 3 was changed; the 2 before it are good\n")
    status, out, _ = terminal("audit verify --json")
    assert status == 1
    assert json.loads(out) == {"good": False, "records": 2, "record": 3, "reason": "was changed"}
    with records.open("ab") as file:
        file.write(b"garbage\n")
    status, _, err = terminal("audit list")
    assert status == 1
    assert "record 4 of the audit log is damaged" in err


def test_audit_on_a_machine_that_is_no_host(terminal: Terminal) -> None:
    assert terminal("audit verify")[1] == "0 records, none changed or missing\n"
    assert terminal("audit export")[1] == ""
    assert terminal("audit list")[0] == 0
