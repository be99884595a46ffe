"""`codexctl skill`: what an agent has to know of codexctl, and the Codex plugin that carries it.

`skill/` beside the packages is a marketplace of the official codex's with one plugin in it, whose
one skill is the SKILL.md of the project's top level (a test keeps the two the same).
"""

from __future__ import annotations

import json
import os
from typing import Any

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import emit, json_option, notice
from codexctl.errors import CodexctlError

MARKETPLACE = "codexctl"
PLUGIN = f"codexctl@{MARKETPLACE}"
CODEX_TIMEOUT_S = 120.0


@click.group("skill", cls=LazyGroup)
def skill() -> None:
    """Teach the official codex to use codexctl: its skill, as a Codex plugin.

    \b
        codexctl skill install
        codex "spin up a 4-vCPU machine in London for my API work"
    """


@skill.command()
def show() -> None:
    """Print the skill, for any other agent: where files are, what to run, when to ask.

    \b
        codexctl skill show >.agents/skills/codexctl/SKILL.md
    """
    path = os.path.join(folder(), "codexctl", "skills", "codexctl", "SKILL.md")
    with open(path, encoding="utf-8") as file:
        emit(None, False, text=file.read())


@skill.command()
@json_option
def install(as_json: bool) -> None:
    """Install or renew the plugin in the codex that is on the PATH, for its CODEX_HOME.

    The commands of codex's own that do it are shown. After an update of codexctl, run it again.
    """
    # Another codexctl's marketplace of this name would be in the way, and its path may be gone.
    _codex("plugin", "marketplace", "remove", MARKETPLACE, may_fail=True)
    _codex("plugin", "marketplace", "add", folder(), "--json")
    added = _codex("plugin", "add", PLUGIN, "--json")
    record = {"plugin": PLUGIN, "version": added.get("version"), "path": added.get("installedPath")}
    emit(record, as_json, text=None if as_json else f"codex has the skill {record['path']}")


@skill.command()
@json_option
def remove(as_json: bool) -> None:
    """Take the plugin out of codex again."""
    _codex("plugin", "remove", PLUGIN, "--json")
    _codex("plugin", "marketplace", "remove", MARKETPLACE)
    emit({"removed": PLUGIN}, as_json, text=None if as_json else f"{PLUGIN} is removed")


def folder() -> str:
    """The marketplace that ships with this codexctl."""
    import codexctl

    return os.path.join(os.path.dirname(codexctl.__file__), "skill")


def _codex(*words: str, may_fail: bool = False) -> dict[str, Any]:
    """Run the official codex; the JSON object that it printed, or {}."""
    import shlex
    import shutil
    import subprocess

    program = shutil.which("codex")
    if program is None:
        raise CodexctlError(
            "the official codex is not on the PATH",
            hint="npm install -g @openai/codex; for another agent: codexctl skill show",
        )
    if not may_fail:
        notice(shlex.join(["codex", *words]))
    try:
        done = subprocess.run(
            [program, *words],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=CODEX_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodexctlError(f"codex did not run: {error}") from error
    if done.returncode != 0 and not may_fail:
        said = done.stderr.decode(errors="replace").splitlines()
        errors = [line for line in said if line.startswith("Error")] or ["no reason"]
        raise CodexctlError(
            f"codex {' '.join(words[:2])} failed: {errors[0][:300]}",
            hint="is it 0.169 or newer? see: codex --version",
        )
    try:
        value = json.loads(done.stdout)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
