"""`codexctl plugin` in environments that uv, uv tool and pipx made: installed, updated, undone.

The tools are real; what they install comes from the package index (their cache, after the first
time). What pip makes is in test_plugin_install.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from codexctl.provision.scaffold import write_package
from codexctl.provision.wheel import own_wheel

RUN_TIMEOUT_S = 100
UV = shutil.which("uv", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
GIT = ("git", "-c", "user.name=me", "-c", "user.email=me@example.net")
pytestmark = [
    pytest.mark.skipif(UV is None, reason="uv is not installed"),
    pytest.mark.timeout(400),
    pytest.mark.slow,
]


class Installed:
    """codexctl as a person has it by one of the tools."""

    def __init__(self, folder: Path, tool: str) -> None:
        assert UV is not None
        self.folder, self.tool = folder, tool
        bins = folder / "bin"
        self.env = {
            **{name: value for name, value in os.environ.items() if name.startswith(KEPT)},
            "PATH": f"{bins}:{folder / 'tools' / 'bin'}:{os.path.dirname(UV)}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", str(folder)),
            "CODEXCTL_HOME": str(folder / "home"),
            "UV_TOOL_DIR": str(folder / "uv-tools"),
            "UV_TOOL_BIN_DIR": str(bins),
            "PIPX_HOME": str(folder / "pipx"),
            "PIPX_BIN_DIR": str(bins),
            "UV_PYTHON": sys.executable,
            "PIPX_DEFAULT_PYTHON": sys.executable,
            "GIT_ALLOW_PROTOCOL": "file",
        }
        name, data = own_wheel()
        wheel = folder / name
        wheel.write_bytes(data)
        if tool == "uv":
            self.made("uv", "venv", "-q", str(folder / "venv"))
            python = folder / "venv" / "bin" / "python"
            self.made("uv", "pip", "install", "-q", "--python", str(python), str(wheel))
            self.program = folder / "venv" / "bin" / "codexctl"
        elif tool == "uv tool":
            self.made("uv", "tool", "install", "-q", str(wheel))
            self.program = bins / "codexctl"
        else:
            self.made("uv", "venv", "-q", str(folder / "tools"))
            python = folder / "tools" / "bin" / "python"
            self.made("uv", "pip", "install", "-q", "--python", str(python), "pipx[uv]")
            self.made("pipx", "install", str(wheel))
            self.program = bins / "codexctl"

    def made(self, *command: str) -> None:
        done = self._call(command)
        if done.returncode != 0 and re.search("network|fetch|connect", done.stderr, re.IGNORECASE):
            pytest.skip(f"the package index is not reached: {done.stderr.splitlines()[-1]}")
        assert done.returncode == 0, done.stderr

    def _call(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which(command[0], path=self.env["PATH"]) or command[0], *command[1:]],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self._call((str(self.program), *args))

    def ok(self, *args: str) -> subprocess.CompletedProcess[str]:
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return done

    def plugins(self) -> dict[str, tuple[str, str]]:
        listed = json.loads(self.ok("plugin", "list", "--json").stdout)
        return {p["name"]: (p["version"], p["problem"]) for p in listed}

    def packages(self) -> str:
        """Everything that is installed, with versions."""
        python = os.path.join(os.path.dirname(os.path.realpath(self.program)), "python")
        done = self._call(("uv", "pip", "freeze", "--python", python))
        assert done.returncode == 0, done.stderr
        return done.stdout


KEPT = ("PIP_", "UV_", "SSL_", "https_proxy", "http_proxy", "NO_PROXY", "XDG_")
COMMANDS = {
    "uv": "uv pip install --python",
    "uv tool": "uv pip install --python",
    "pipx": "pipx inject codexctl",
}


@pytest.mark.parametrize("tool", ["uv tool", "pipx"])
def test_a_plugin_comes_is_updated_or_left_as_it_was_and_goes(tool: str, tmp_path: Path) -> None:
    installed = Installed(tmp_path, tool)
    package = Path(write_package("acme", str(tmp_path / "acme")))
    before = installed.packages()
    done = installed.ok("plugin", "install", str(package), "--yes", "--json")
    assert COMMANDS[tool] in done.stderr, "the exact command is shown"
    assert json.loads(done.stdout)[0]["provider"] == "acme"
    assert ("uv tool upgrade drops" in done.stderr) == (tool == "uv tool")
    # A version that does not load is undone, although that of before is nowhere but here.
    with_it = installed.packages()
    module = package / "codexctl_acme.py"
    good = module.read_text()
    module.write_text(good.replace("USER_DATA_BYTES = 65536", "raise OSError('no')"))
    new_version(package, "0.2.0")
    done = installed.run("plugin", "update", "acme")
    assert done.returncode == 1
    assert "OSError: no; everything is as it was" in done.stderr
    assert installed.packages() == with_it
    assert installed.plugins()["acme"] == ("0.1.0", "")
    module.write_text(good)
    assert "0.2.0" in installed.ok("plugin", "update", "acme").stdout
    assert installed.plugins()["acme"] == ("0.2.0", "")
    installed.ok("plugin", "remove", "acme", "--yes")
    assert installed.packages() == before


def test_a_name_is_installed_from_an_index_and_updated_from_there(tmp_path: Path) -> None:
    installed = Installed(tmp_path, "uv")
    package = Path(write_package("acme", str(tmp_path / "acme")))
    first, second = tmp_path / "first", tmp_path / "second"
    installed.made("uv", "build", "-q", "--wheel", "-o", str(first), str(package))
    new_version(package, "0.2.0")
    installed.made("uv", "build", "-q", "--wheel", "-o", str(second), str(package))
    # An index of our own, in which nobody else has taken the name.
    installed.env |= {"UV_FIND_LINKS": str(first), "UV_NO_INDEX": "1"}
    done = installed.ok("plugin", "install", "codexctl-acme", "--yes")
    assert COMMANDS["uv"] in done.stderr, "the exact command is shown"
    assert installed.plugins()["acme"] == ("0.1.0", "")
    installed.env["UV_FIND_LINKS"] = str(second)
    assert "0.2.0" in installed.ok("plugin", "update", "acme").stdout
    done = installed.run("plugin", "install", "codexctl-nobody", "--yes")
    assert done.returncode == 1
    assert "everything is as it was" in done.stderr


def test_a_git_url_is_followed_and_codexctl_itself_is_never_replaced(tmp_path: Path) -> None:
    installed = Installed(tmp_path, "uv")
    package = Path(write_package("remote", str(tmp_path / "remote")))
    git(package, "init", "-q", "-b", "main")
    commit(package, "one")
    url = f"file://{package}"
    done = installed.ok("plugin", "install", url, "--yes")
    assert f"git+{url}" in done.stderr
    new_version(package, "0.3.0")
    assert "0.1.0 is the newest" in installed.ok("plugin", "update", "remote").stderr
    commit(package, "two")
    assert "0.3.0" in installed.ok("plugin", "update", "remote").stdout
    # A later one asks for another codexctl, which some index has under this name.
    before = installed.packages()
    other_codexctl(tmp_path / "index")
    installed.env["UV_FIND_LINKS"] = str(tmp_path / "index")
    project = package / "pyproject.toml"
    project.write_text(project.read_text().replace('["codexctl"]', '["codexctl>=99"]'))
    commit(package, "three")
    done = installed.run("plugin", "update", "remote")
    assert done.returncode == 1
    assert "would replace codexctl 0.1.0 itself; everything is as it was" in done.stderr
    assert installed.packages() == before


def other_codexctl(folder: Path) -> None:
    """A package of the same name, as somebody else may have published it."""
    folder.mkdir()
    info = "codexctl-99.0.dist-info"
    with zipfile.ZipFile(folder / "codexctl-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: codexctl\nVersion: 99.0\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")


def new_version(package: Path, version: str) -> None:
    project = package / "pyproject.toml"
    project.write_text(
        project.read_text().replace('version = "0.1.0"', f'version = "{version}"', 1)
    )


def commit(package: Path, message: str) -> None:
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", message)


def git(folder: Path, *words: str) -> None:
    subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True, timeout=30)
