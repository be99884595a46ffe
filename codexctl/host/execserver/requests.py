"""What the official agent asks of an exec-server, checked and in this host's own terms.

The rules:
- A path is a file:// URL (0.169) or an absolute path (before); it is answered in the form it came.
- What the agent's own permission profile forbids, this host forbids too: folders that are not to be
  written, paths that are not to be read, no network. Where it forbids something that cannot be
  enforced here, the request is refused rather than run with more.
- What it allows is only a wish: the host's policy and sandbox stand above it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, unquote, urlsplit

INVALID_REQUEST = -32600
UNKNOWN_METHOD = -32601
INVALID_PARAMS = -32602
FAILED = -32603
NOT_FOUND = -32004

MAX_PATH_BYTES = 4096
MAX_ID_BYTES = 256
MAX_ENTRIES = 256  # of a permission profile

# Variables of the shell that stay where an environment policy says "core", and what it takes for
# secret where it does not say otherwise.
CORE_VARIABLES = frozenset(
    ("HOME", "LOGNAME", "PATH", "SHELL", "USER", "USERNAME", "TMPDIR", "TEMP", "TMP")
)
SECRET_PATTERNS = ("*KEY*", "*SECRET*", "*TOKEN*")


class RpcError(Exception):
    """The answer to a request that fails: a JSON-RPC code and one sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Folders:
    """Paths of the agent as paths of this host and back.

    `local` is a folder of the agent's machine that stands for `workspace` here; None: paths are the
    same on both.
    """

    def __init__(self, local: str | None, workspace: str) -> None:
        self._local = local.rstrip("/") if local else None
        self._workspace = workspace
        self._urls = True  # the form that the agent uses; the newest until it has shown its own

    def path(self, value: object) -> str:
        """The path on this host. RpcError for what is no absolute path."""
        if not isinstance(value, str) or "\0" in value or len(value) > MAX_PATH_BYTES:
            raise RpcError(INVALID_PARAMS, "a path has to be a file: URL")
        self._urls = not value.startswith("/")
        path = value
        if self._urls:
            parts = urlsplit(value)
            if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
                raise RpcError(INVALID_PARAMS, f"not a file: URL: {value[:80]}")
            path = unquote(parts.path, errors="surrogateescape")
        path = os.path.normpath(path)
        if not path.startswith("/") or "\0" in path:
            raise RpcError(INVALID_PARAMS, f"not an absolute path: {value[:80]}")
        if self._local and (path == self._local or path.startswith(f"{self._local}/")):
            return self._workspace + path[len(self._local) :]
        return path

    def shown(self, path: str) -> str:
        """A path of this host as the agent knows it, in the form that it uses itself."""
        workspace = self._workspace
        if self._local and (path == workspace or path.startswith(f"{workspace}/")):
            path = self._local + path[len(workspace) :]
        return f"file://{quote(path, errors='surrogateescape')}" if self._urls else path


@dataclass(frozen=True, slots=True)
class Wish:
    """What the agent's permission profile leaves: `network`, and rules by path.

    `rules` maps paths of this host to "read", "write" or "deny"; the deepest decides. None is no
    rule at all: what the host gives.
    """

    network: bool = True
    rules: Mapping[str, str] | None = None

    def narrowed(self, root: str) -> tuple[tuple[str, bool], ...]:
        """`SandboxRequest.narrowed` for this host's writable root. RpcError if it cannot be."""
        if self.rules is None:
            return ()
        base = ""
        for path in sorted(self.rules, key=len):
            if _within(root, path):
                base = self.rules[path]
        if base not in ("read", "write"):
            raise RpcError(
                FAILED, f"the agent's permission profile hides {root}, which this host cannot"
            )
        below = {
            os.path.realpath(path): access == "write"
            for path, access in self.rules.items()
            if access != "deny" and path != root and _within(path, root)
        }
        return tuple(sorted({root: base == "write", **below}.items()))

    @property
    def hidden(self) -> tuple[str, ...]:
        """Real paths that must not be seen."""
        rules = self.rules or {}
        return tuple(os.path.realpath(path) for path in sorted(rules) if rules[path] == "deny")


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root if root == "/" else f"{root}/")


def parse_wish(value: object, folders: Folders, version: str) -> Wish:
    """The `sandbox` of a request; null asks for none of the agent's own.

    RpcError where it has a form or a rule that this host does not know: the agent's version is in
    the sentence.
    """
    if value is None:
        return Wish()
    if not isinstance(value, dict):
        raise _strange(version)
    profile = value.get("permissions")
    if not isinstance(profile, dict) or profile.get("type") not in _PROFILES:
        raise _strange(version)
    if profile["type"] == "disabled":
        return Wish()
    network = profile.get("network")
    if network not in ("restricted", "enabled"):
        raise _strange(version)
    rules = None
    if profile["type"] == "managed":
        system = profile.get("file_system")
        if not isinstance(system, dict) or system.get("type") not in ("restricted", "unrestricted"):
            raise _strange(version)
        if system["type"] == "restricted":
            cwd = value.get("cwd")
            roots = value.get("workspaceRoots") or ([] if cwd is None else [cwd])
            if not isinstance(roots, list) or len(roots) > MAX_ENTRIES:
                raise _strange(version)
            places = [os.path.realpath(folders.path(root)) for root in roots]
            rules = _rules(system.get("entries"), places, folders, version)
    return Wish(network == "enabled", rules)


_PROFILES = ("managed", "disabled", "external")
# Equally specific rules: the stricter holds, but writing that was given beside reading is meant.
_PRECEDENCE = {"read": 0, "write": 1, "deny": 2}


def _rules(entries: object, roots: list[str], folders: Folders, version: str) -> dict[str, str]:
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise _strange(version)
    rules: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise _strange(version)
        access = "deny" if entry.get("access") == "none" else entry.get("access")
        if access not in _PRECEDENCE:
            raise _strange(version)
        for path in _places(entry.get("path"), access, roots, folders, version):
            if _PRECEDENCE[access] >= _PRECEDENCE[rules.get(path, "read")]:
                rules[path] = access
    return rules


def _places(
    value: object, access: str, roots: list[str], folders: Folders, version: str
) -> list[str]:
    """The paths of this host that an entry of a profile is about."""
    if not isinstance(value, dict):
        raise _strange(version)
    if value.get("type") == "path":
        return [os.path.realpath(folders.path(value.get("path")))]
    special = value.get("value")
    if value.get("type") != "special" or not isinstance(special, dict):
        if access == "deny":
            raise RpcError(FAILED, "this host cannot hide files from commands by a pattern")
        return []  # what cannot be given more need not be understood
    kind, below = special.get("kind"), special.get("subpath")
    if kind == "root":
        return ["/"]
    if kind in ("project_roots", "current_working_directory"):
        if below is None:
            return roots
        if not isinstance(below, str) or "\0" in below:
            raise _strange(version)
        return [os.path.normpath(os.path.join(root, below)) for root in roots]
    if access == "deny":
        raise RpcError(FAILED, f"this host cannot hide {str(kind)[:40]!r} from commands")
    return []  # temporary folders and the system's: commands have their own here


def _strange(version: str) -> RpcError:
    said = f"codex {version}" if version else "this codex"
    return RpcError(
        FAILED,
        f"{said} describes its sandbox in a form that this host does not know: update codexctl "
        "on the host, or turn the agent's own sandbox off (the host's stays)",
    )


@dataclass(frozen=True, slots=True)
class Variables:
    """The agent's wish for the environment: `env` set, and what of the login's to leave out."""

    env: dict[str, str]
    inherit: str = "all"
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def without(self, names: Mapping[str, str]) -> frozenset[str]:
        """The names of the login environment that the command is not to have."""
        return frozenset(name for name in names if not self._keeps(name))

    def _keeps(self, name: str) -> bool:
        if self.inherit == "none" or (self.inherit == "core" and name not in CORE_VARIABLES):
            return False
        if _matches(name, self.exclude):
            return False
        return not self.only or _matches(name, self.only)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns)


def parse_variables(params: Mapping[str, Any]) -> Variables:
    """`env` and `envPolicy` of process/start. RpcError."""
    env = params.get("env") or {}
    policy = params.get("envPolicy") or {}
    if not isinstance(policy, dict) or policy.get("inherit", "all") not in ("all", "core", "none"):
        raise RpcError(INVALID_PARAMS, "envPolicy.inherit has to be all, core or none")
    given = policy.get("set") or {}
    if not _are_texts(env) or not _are_texts(given):
        raise RpcError(INVALID_PARAMS, "env has to be an object of texts")
    lists = []
    for key in ("exclude", "includeOnly"):
        items = policy.get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise RpcError(INVALID_PARAMS, f"envPolicy.{key} has to be a list of texts")
        lists.append(tuple(items))
    exclude, only = lists
    if policy and policy.get("ignoreDefaultExcludes") is not True:
        exclude += SECRET_PATTERNS
    return Variables({**given, **env}, policy.get("inherit", "all"), exclude, only)


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, str) for pair in value.items() for item in pair
    )


@dataclass(frozen=True, slots=True)
class Start:
    """A checked process/start."""

    id: str
    argv: tuple[str, ...]
    cwd: str
    variables: Variables = field(repr=False)
    tty: bool
    stdin: bool
    wish: Wish

    @classmethod
    def parse(cls, params: Mapping[str, Any], folders: Folders, version: str) -> Start:
        """RpcError says what is not as it has to be."""
        argv = params.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(a, str) for a in argv):
            raise RpcError(INVALID_PARAMS, "argv has to be a list of texts, and not empty")
        if params.get("enforceManagedNetwork") is True:
            raise RpcError(
                FAILED,
                "this host has no managed network: its policy gives commands the network or not",
            )
        if params.get("arg0") not in (None, argv[0]):
            raise RpcError(INVALID_PARAMS, "this host starts programs under their own name alone")
        wish = parse_wish(params.get("sandbox"), folders, version)
        variables = parse_variables(params)
        return cls(
            process_id(params),
            tuple(argv),
            folders.path(params.get("cwd")),
            variables,
            params.get("tty") is True,
            params.get("pipeStdin") is True,
            wish,
        )


def process_id(params: Mapping[str, Any]) -> str:
    """The agent's own name for a process. RpcError."""
    value = params.get("processId")
    if not isinstance(value, str) or not value or len(value) > MAX_ID_BYTES:
        raise RpcError(INVALID_PARAMS, "processId has to be a text")
    return value
