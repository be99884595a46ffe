"""`codexctl host install`: a unit that systemd takes as it was meant, and leaves nothing behind."""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import StateError, UsageError
from codexctl.host import service as services
from codexctl.host.service import host_service, install, systemd_quoted, uninstall, verify
from codexctl.paths import Home

ARGUMENTS = ["--relay", "https://r.example/a%20b", "--name", "box", "--workspace", '/a b/$c"d\\e']


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Home(str(tmp_path / ".codexctl")).ensure()


def unquoted(line: str) -> list[str]:
    """What systemd makes of a command line that consists of double-quoted words."""
    words = shlex.split(line)
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


def test_the_unit(home: Home, tmp_path: Path) -> None:
    unit = host_service(home, ARGUMENTS, "box", manager="systemd")
    assert unit.unit == "codexctl-host.service"
    assert unit.path == str(tmp_path / "config/systemd/user/codexctl-host.service")
    lines = unit.text.decode().splitlines()
    command = next(line for line in lines if line.startswith("ExecStart="))
    assert unquoted(command.removeprefix("ExecStart="))[1:] == [
        "-m", "codexctl", "host", "serve", *ARGUMENTS,
    ]  # fmt: skip
    assert f'Environment="CODEXCTL_HOME={home.path}"' in lines
    assert "OOMPolicy=continue" in lines
    for protection in ("ProtectSystem", "PrivateTmp", "RestrictNamespaces", "PrivateUsers"):
        assert protection not in unit.text.decode()


def test_another_identity_has_a_unit_of_its_own(tmp_path: Path, home: Home) -> None:
    other = host_service(Home(str(tmp_path / "other")), [], "box", manager="systemd")
    assert other.unit != host_service(home, [], "box", manager="systemd").unit
    assert other.unit.startswith("codexctl-host-")


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_word_survives_quoting(word: str) -> None:
    assert unquoted(systemd_quoted(word)) == [word]


def test_words_that_cannot_be_quoted() -> None:
    with pytest.raises(UsageError):
        systemd_quoted("a\nExecStartPre=evil")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_it_and_refuses_a_broken_one(home: Home) -> None:
    unit = host_service(home, ARGUMENTS, "box", manager="systemd")
    assert verify(unit) == ""
    broken = services.Service(
        unit.unit,
        unit.path,
        unit.text.replace(b"KillMode=process", b"KillMode=nonsense"),
        "systemd",
    )
    assert "Failed to parse kill mode" in verify(broken)
    unknown = services.Service(
        unit.unit, unit.path, unit.text.replace(b"KillMode=", b"KillModeOfTomorrow="), "systemd"
    )
    assert verify(unknown) == ""
    with pytest.raises(StateError, match="does not accept the unit"):
        install(broken)
    assert not os.path.exists(unit.path)


def fake_systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> Path:
    log = folder / "calls"
    tool = folder / "bin" / "systemctl"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexit {status}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return log


def test_install_and_uninstall(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_systemctl(tmp_path, monkeypatch, 0)
    unit = host_service(home, ARGUMENTS, "box", manager="systemd")
    assert install(unit) == []
    assert Path(unit.path).read_bytes() == unit.text
    assert stat.S_IMODE(os.stat(unit.path).st_mode) == 0o644
    assert install(unit) == []
    assert uninstall(unit)
    assert not os.path.exists(unit.path)
    assert not uninstall(unit)
    assert log.read_text().splitlines()[-2:] == [
        "--user disable --now codexctl-host.service",
        "--user daemon-reload",
    ]


def test_where_no_manager_answers(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_systemctl(tmp_path, monkeypatch, 1)
    unit = host_service(home, ARGUMENTS, "box", manager="systemd")
    assert install(unit) == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now codexctl-host.service",
    ]
    assert os.path.exists(unit.path)


def test_a_setuid_bwrap_keeps_its_privileges(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert b"NoNewPrivileges" in host_service(home, [], "box", manager="systemd").text
    bwrap.chmod(0o4755)
    assert b"NoNewPrivileges" not in host_service(home, [], "box", manager="systemd").text


def test_launchd(home: Home, tmp_path: Path) -> None:
    agent = host_service(home, ARGUMENTS, "box", manager="launchd")
    assert agent.path == str(tmp_path / "Library/LaunchAgents/dev.codexctl.codexctl-host.plist")
    content = plistlib.loads(agent.text)
    assert content["Label"] == agent.unit == "dev.codexctl.codexctl-host"
    assert content["ProgramArguments"][1:5] == ["-m", "codexctl", "host", "serve"]
    assert content["EnvironmentVariables"] == {"CODEXCTL_HOME": home.path}
    assert verify(agent) == ""
    assert agent.start[0][:2] == ["launchctl", "bootstrap"]


def test_lingering_is_suggested_where_it_is_off(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import getpass

    monkeypatch.setattr(services, "LINGER", str(tmp_path))
    unit = host_service(home, [], "box", manager="systemd")
    assert services.linger_hint(unit) == f"loginctl enable-linger {getpass.getuser()}"
    (tmp_path / getpass.getuser()).write_text("")
    assert services.linger_hint(unit) == ""
