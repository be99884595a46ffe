"""Which tools a repository's own files ask for, and which of them a login has on its PATH.

By the names of files at the top of the tree alone: nothing is read or run. Only what the source has
and the target has not is worth telling, since a thread may do without either.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

# What is needed to set a tree up, by the file that says so.
ASKED_BY = {
    ".envrc": ("direnv",),
    ".pre-commit-config.yaml": ("pre-commit",),
    ".tool-versions": ("asdf",),
    "CMakeLists.txt": ("cmake",),
    "Cargo.toml": ("cargo",),
    "Gemfile": ("bundle",),
    "Makefile": ("make",),
    "bun.lock": ("bun",),
    "composer.json": ("composer",),
    "deno.json": ("deno",),
    "docker-compose.yml": ("docker",),
    "flake.nix": ("nix",),
    "go.mod": ("go",),
    "justfile": ("just",),
    "meson.build": ("meson", "ninja"),
    "mise.toml": ("mise",),
    "mix.exs": ("mix",),
    "package.json": ("node", "npm"),
    "pnpm-lock.yaml": ("pnpm",),
    "poetry.lock": ("poetry",),
    "pom.xml": ("mvn",),
    "pyproject.toml": ("python3",),
    "uv.lock": ("uv",),
    "yarn.lock": ("yarn",),
}
_KNOWN = {tool for tools in ASKED_BY.values() for tool in tools}


def wanted(top: str, path: str) -> dict[str, str]:
    """The tools that the tree at `top` asks for and `path` has, each with the file that asks."""
    return {
        tool: name
        for name, tools in ASKED_BY.items()
        if os.path.isfile(os.path.join(top, name))
        for tool in tools
        if shutil.which(tool, path=path)
    }


def missing(tools: Any, path: str) -> list[str]:
    """Which of `tools`, as another host has told them, `path` has not."""
    known = sorted(_KNOWN.intersection(tools)) if isinstance(tools, dict) else []
    return [tool for tool in known if shutil.which(tool, path=path) is None]
