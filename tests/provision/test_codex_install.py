"""The step of cloud-init that installs the official codex, run by sh against a registry of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codexctl.errors import UsageError
from codexctl.provision.codex import ENV_REGISTRY, install_script
from tests.provision.npm_registry import CPU, VERSION, npm_registry

pytestmark = pytest.mark.skipif(CPU == "none", reason="there is no codex for this processor")
NEEDED = ("python3", "mkdir", "dirname", "ln", "cat", "readlink", "sh")
TIMEOUT_S = 60


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """With a PATH on which there is no codex."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in NEEDED:
        found = os.path.realpath(sys.executable) if name == "python3" else shutil.which(name)
        assert found is not None
        if not (tools / name).exists():
            (tools / name).symlink_to(found)
    return subprocess.run(
        ["sh", "-c", script],
        env={"PATH": str(tools), "HOME": str(folder), "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


def script_for(folder: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ENV_REGISTRY, registry)
    return install_script("$HOME/lib/codex", "$HOME/bin")


def test_codex_comes_with_its_resources_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with npm_registry() as registry:
        script = script_for(tmp_path, registry, monkeypatch)
        done = run(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"codex-cli {VERSION} and its resources\n"
    files = {str(p.relative_to(tmp_path / "lib")) for p in (tmp_path / "lib").rglob("*")}
    assert files == {"codex", *(f"codex/{n}" for n in ("bin", "bin/codex", "codex-resources"))} | {
        "codex/codex-resources/note"
    }
    assert not (tmp_path / "escaped").exists()
    again = run(tmp_path, script)
    assert (again.returncode, again.stdout) == (0, ""), "it is there already; nobody is asked"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [("changed", "checksum"), ("cut", "checksum"), ("gone", "cannot fetch")],
)
def test_a_download_that_is_not_right_installs_nothing(
    spoil: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with npm_registry(spoil) as registry:
        done = run(tmp_path, script_for(tmp_path, registry, monkeypatch))
    assert done.returncode != 0
    assert reason in done.stderr.splitlines()[-1]
    assert not (tmp_path / "lib" / "codex").exists()
    assert not os.path.lexists(tmp_path / "bin" / "codex")


def test_the_registry_is_npms_own_and_a_mirror_has_to_be_safe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ENV_REGISTRY, raising=False)
    assert " - https://registry.npmjs.org " in install_script()
    monkeypatch.setenv(ENV_REGISTRY, "http://mirror.example")
    with pytest.raises(UsageError, match="https"):
        install_script()
