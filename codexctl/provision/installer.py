"""Install plugins into the environment that runs codexctl: verified by a fresh process, or undone.

Who made the environment decides the command: pipx (`pipx_metadata.json`), uv tool
(`uv-receipt.toml`), uv (no pip in it), else pip. What a fresh Python sees before and after says
what came, what broke, and what has to go again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from codexctl.errors import CodexctlError, UsageError

INSTALL_TIMEOUT_S = 600.0
LOOK_TIMEOUT_S = 60.0
LOOK = """
import json, sys
from importlib.metadata import distributions
from codexctl.provision.plugins import load_plugins
packages = {}
for found in distributions():
    packages.setdefault(found.name.lower().replace("_", "-"), found.version)
fields = ("name", "module", "package", "version", "provider", "problem")
plugins = [{f: getattr(p, f) for f in fields} for p in load_plugins().found]
json.dump({"packages": packages, "plugins": plugins}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """The Python environment that runs codexctl, and how its maker installs into it."""

    kind: str
    """pip, uv, pipx or uv tool."""
    install: tuple[str, ...]
    uninstall: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a fresh process of this environment sees."""

    packages: dict[str, str]
    """Name to version."""
    plugins: tuple[dict[str, Any], ...]

    def plugin(self, name: str) -> dict[str, Any] | None:
        """By entry point, provider or package name."""
        for plugin in self.plugins:
            if name in (plugin["name"], plugin["provider"], plugin["package"]):
                return plugin
        return None


def environment(prefix: str = sys.prefix, python: str = sys.executable) -> Environment:
    """How to install here; CodexctlError where the system's packages own this Python."""
    if os.path.exists(os.path.join(prefix, "pipx_metadata.json")):
        venv = os.path.basename(prefix)
        return Environment("pipx", ("pipx", "inject", venv), ("pipx", "uninject", venv))
    uv = shutil.which("uv") or "uv"
    with_uv = (uv, "pip", "install", "--python", python)
    without_uv = (uv, "pip", "uninstall", "--python", python)
    if os.path.exists(os.path.join(prefix, "uv-receipt.toml")):
        note = "uv tool upgrade drops what was added: install the plugin again after it"
        return Environment("uv tool", with_uv, without_uv, note)
    managed = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if prefix == sys.base_prefix and os.path.exists(managed):
        raise CodexctlError(
            "this codexctl runs in the system's own Python, which its packages manage",
            hint="install codexctl with pipx or uv tool, then its plugins",
        )
    if find_spec("pip") is None:
        return Environment("uv", with_uv, without_uv)
    pip = (python, "-m", "pip")
    quiet = "--disable-pip-version-check"
    return Environment("pip", (*pip, "install", quiet), (*pip, "uninstall", quiet, "--yes"))


def look() -> Seen:
    """Ask a fresh process; what this one has imported does not count."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOOK], check=False, capture_output=True, timeout=LOOK_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CodexctlError(
            f"a fresh codexctl does not load within {LOOK_TIMEOUT_S:.0f} s"
        ) from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise CodexctlError(f"a fresh codexctl does not load: {' '.join(last)[:300]}")
    value = json.loads(done.stdout)
    return Seen(value["packages"], tuple(value["plugins"]))


def install(
    target: str, *, upgrade: bool = False, show: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Install a NAME, PATH or GIT-URL; the plugins that came or changed, each of which works.

    Anything else is rolled back, and CodexctlError says why. `show` gets each command.
    """
    here = environment()
    before = look()
    specs = [_spec(target)]
    options = ["--upgrade"] if upgrade and here.kind != "pipx" else []
    if upgrade and here.kind == "pipx":
        options = ["--force"]
    problem = ""
    try:
        _run([*here.install, *options, *specs], show)
        after = look()
    except CodexctlError as error:
        problem, after = error.message, None
    if after is not None:
        changed = _changed(before, after)
        new = [plugin for plugin in after.plugins if _key(plugin["package"]) in changed]
        broken = [plugin for plugin in new if plugin["problem"]]
        if new and not broken:
            return new
        if broken:
            problem = f"the plugin {broken[0]['name']} does not load: {broken[0]['problem']}"
        elif upgrade and not changed:
            return []
        elif after == before:
            raise CodexctlError(
                f"{target} is installed already", hint="codexctl plugin list, or update"
            )
        else:
            problem = f"{target} has no plugin for codexctl (no entry point codexctl.plugins)"
    _roll_back(here, before, show)
    raise CodexctlError(
        f"{problem}; everything is as it was",
        hint="a plugin's author tests it with: codexctl plugin new",
    )


def remove(package: str, *, show: Callable[[str], None] = lambda _: None) -> None:
    """Uninstall one package and see that its plugin is gone."""
    here = environment()
    _run([*here.uninstall, package], show)
    if look().plugin(package) is not None:
        raise CodexctlError(f"{package} is still there after its removal")


def _spec(target: str) -> str:
    if target.startswith("-"):
        raise UsageError(f"{target!r} is no package, folder or git URL")
    if os.path.exists(target):
        return os.path.abspath(target)
    if target.startswith(("https://", "ssh://", "git@")) and not target.endswith((".whl", ".gz")):
        return f"git+{_git_url(target)}"
    return target


def _git_url(url: str) -> str:
    # git@host:path is no URL to installers.
    return f"ssh://{url.replace(':', '/', 1)}" if url.startswith("git@") else url


def _run(command: Sequence[str], show: Callable[[str], None]) -> None:
    show(shlex.join(command))
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            timeout=INSTALL_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise CodexctlError(f"{command[0]} is not here, which made this environment") from error
    except subprocess.TimeoutExpired as error:
        raise CodexctlError(f"{command[0]} did not end within {INSTALL_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        errors = [line for line in said if line.lower().startswith("error")] or said[-1:]
        raise CodexctlError(f"{' '.join(command[:3])} failed: {' '.join(errors[:1])[:300]}")


def _changed(before: Seen, after: Seen) -> set[str]:
    return {
        name for name, version in after.packages.items() if before.packages.get(name) != version
    } | {_key(plugin["package"]) for plugin in after.plugins if plugin not in before.plugins}


def _key(package: str) -> str:
    return package.lower().replace("_", "-")


def _roll_back(here: Environment, before: Seen, show: Callable[[str], None]) -> None:
    """Back to the packages of `before`; what cannot be is told, and the rest is still done."""
    now = _packages()
    failed = []
    steps = [[*here.uninstall, name] for name in now if name not in before.packages]
    steps += [
        [*here.install, f"{name}=={version}"]
        for name, version in before.packages.items()
        if now.get(name) != version
    ]
    for step in steps:
        try:
            _run(step, show)
        except CodexctlError as error:
            failed.append(error.message)
    if failed:
        raise CodexctlError(
            f"the installation failed and could not be undone: {failed[0]}",
            hint="codexctl plugin check shows what loads",
        )


def _packages() -> dict[str, str]:
    """As `look`, but also where a plugin keeps codexctl itself from loading."""
    script = LOOK.replace("from codexctl.provision.plugins import load_plugins\n", "")
    script = script.replace("load_plugins().found", "()")
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, timeout=LOOK_TIMEOUT_S
    )
    packages: dict[str, str] = json.loads(done.stdout)["packages"]
    return packages
