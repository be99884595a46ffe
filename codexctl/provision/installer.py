"""Install plugins into the environment that runs codexctl: verified by a fresh process, or undone.

Who made the environment decides the command: pipx (`pipx_metadata.json`), uv tool
(`uv-receipt.toml`), uv (no pip in it), else pip. What a fresh Python sees before and after says
what came and what broke; then the environment is put back as it was (snapshot.py).
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
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from codexctl.errors import CodexctlError, UsageError
from codexctl.provision.snapshot import Snapshot

INSTALL_TIMEOUT_S = 600.0
LOOK_TIMEOUT_S = 60.0
OWN = "codexctl"
GIT_SCHEMES = ("https://", "ssh://", "git://", "file://")
LOOK = """
import json, sys
from importlib.metadata import distributions
packages = {}
for found in distributions():
    packages.setdefault(found.name.lower().replace("_", "-"), found.version)
fields = ("name", "module", "package", "version", "provider", "problem")
plugins = []
# Of somebody else's codexctl nothing is run.
if packages.get("codexctl") == sys.argv[1]:
    from codexctl.provision.plugins import load_plugins
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


def look(own_version: str = "") -> Seen:
    """Ask a fresh process; what this one has imported does not count.

    Plugins are loaded only while codexctl itself is of `own_version`, by default the present one.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOOK, own_version or version(OWN)],
            check=False,
            capture_output=True,
            timeout=LOOK_TIMEOUT_S,
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
    target: str, *, package: str = "", show: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Install a NAME, PATH or GIT-URL; the plugins that came or changed, each of which works.

    Anything else is undone, and CodexctlError says why. `package`, where it is an update: what is
    installed and may be replaced; [] when it is the newest. `show` gets each command.
    """
    here = environment()
    spec = _spec(target)
    with Snapshot() as snapshot:
        before = look()
        try:
            for command in _commands(here, spec, package):
                _run(command, show)
            return _checked(before, look(before.packages[OWN]), target, update=bool(package))
        except BaseException as error:
            snapshot.restore()
            if not isinstance(error, CodexctlError) or isinstance(error, NothingNew):
                raise
            raise CodexctlError(
                f"{error.message}; everything is as it was",
                hint=error.hint or "a plugin's author tests it with: codexctl plugin new",
            ) from error


class NothingNew(CodexctlError):
    """It is there already, in this version."""


def _commands(here: Environment, spec: str, package: str) -> list[list[str]]:
    """What installs `spec`; an update touches the plugin's own package and no other."""
    if not package:
        return [[*here.install, spec]]
    if here.kind == "pipx":
        # Its --force would resolve codexctl itself anew, from the index.
        return [[*here.uninstall, package], [*here.install, spec]]
    if here.kind == "pip":
        return [[*here.install, "--upgrade", spec]]
    again = ["--upgrade-package", package, "--reinstall-package", package]
    return [[*here.install, *again, "--refresh-package", package, spec]]


def _checked(before: Seen, after: Seen, target: str, *, update: bool) -> list[dict[str, Any]]:
    """The plugins that came or changed; CodexctlError where that is not what was wanted."""
    if after.packages.get(OWN) != before.packages.get(OWN):
        raise CodexctlError(
            f"{target} would replace codexctl {before.packages.get(OWN)} itself",
            hint="it asks for another version of codexctl: update that first",
        )
    changed = _changed(before, after)
    new = [plugin for plugin in after.plugins if _key(plugin["package"]) in changed]
    for plugin in new:
        if plugin["problem"]:
            raise CodexctlError(f"the plugin {plugin['name']} does not load: {plugin['problem']}")
    if new or update:
        return new
    if after == before:
        raise NothingNew(f"{target} is installed already", hint="codexctl plugin list, or update")
    raise CodexctlError(f"{target} has no plugin for codexctl (no entry point codexctl.plugins)")


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
    if target.startswith("git@"):
        # git@host:path is no URL to installers.
        return f"git+ssh://{target.replace(':', '/', 1)}"
    if target.startswith(GIT_SCHEMES) and not target.endswith((".whl", ".gz", ".zip")):
        return f"git+{target}"
    return target


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
        errors = [line for line in said if "error" in line.lower()] or said[-1:]
        raise CodexctlError(f"{' '.join(command[:3])} failed: {' '.join(errors[:1])[:300]}")


def _changed(before: Seen, after: Seen) -> set[str]:
    return {
        name for name, version in after.packages.items() if before.packages.get(name) != version
    } | {_key(plugin["package"]) for plugin in after.plugins if plugin not in before.plugins}


def _key(package: str) -> str:
    return package.lower().replace("_", "-")
