"""The official agent's environments.toml, with an entry for a host: `env NAME --environments-toml`.

What else stands in the file stays, comments and order included; written again it is the same.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from codexctl.errors import StateError, UsageError
from codexctl.paths import ENV_HOME

FILE = "environments.toml"
MAX_ID_CHARS = 64
RESERVED = ("local", "none")


def environments_path() -> str:
    """Where the official codex reads it: in CODEX_HOME, else in ~/.codex."""
    folder = os.environ.get("CODEX_HOME") or os.path.expanduser("~/.codex")
    return os.path.realpath(os.path.join(folder, FILE))


def write_environment(
    path: str, name: str, *, folder: str | None, make_default: bool
) -> dict[str, Any]:
    """Write the entry of a host; what was done, for `--json`. StateError for a broken file."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    from codexctl.state.files import replace_file

    try:
        with open(path, encoding="utf-8") as file:
            before = file.read()
    except FileNotFoundError:
        before = ""
    try:
        document = tomlkit.parse(before)
    except TOMLKitError as error:
        raise StateError(f"{path} is not TOML: {error}", hint="mend it, or move it away") from error
    id = environment_id(name)
    entries = document.get("environments")
    if entries is None:
        entries = tomlkit.aot()
    elif not isinstance(entries, tomlkit.items.AoT):
        raise StateError(
            f"environments of {path} is not a list of tables",
            hint="write its entries as [[environments]]",
        )
    entry = next((item for item in entries if item.get("id") == id), None)
    if entry is None:
        entry = tomlkit.table()
        entry["id"] = id
        entries.append(entry)
    entry.pop("url", None)
    for key, value in _entry(name, folder).items():
        if entry.get(key) != value:
            entry[key] = value
    _name_home(entry)
    if make_default or "default" not in document:
        document["default"] = id
    if "environments" not in document:
        document["environments"] = entries
    after = tomlkit.dumps(document)
    if after != before:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        replace_file(path, after.encode())
    default = str(document["default"])
    return {"path": path, "id": id, "default": default, "changed": after != before}


def environment_id(name: str) -> str:
    """The official id of a host: ASCII letters, digits, - and _. UsageError."""
    id = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:MAX_ID_CHARS]
    if id.lower() in RESERVED:
        raise UsageError(
            f"the official codex keeps the name {id} for itself",
            hint="give the host another name: pair with it again, with --name",
        )
    return id


def _entry(name: str, folder: str | None) -> dict[str, Any]:
    program, first = _program()
    more = [] if folder is None else ["--folder", os.path.realpath(folder)]
    return {"program": program, "args": [*first, "exec-server", name, *more]}


def _name_home(entry: Any) -> None:
    """Set the home of this identity in an entry's `env` where it is not the usual one."""
    home = os.environ.get(ENV_HOME)
    env = dict(entry.get("env") or {})
    env.pop(ENV_HOME, None)
    if home:
        env[ENV_HOME] = os.path.abspath(home)
    if env and entry.get("env") != env:
        entry["env"] = env
    elif not env:
        entry.pop("env", None)


def _program() -> tuple[str, list[str]]:
    """How to start this codexctl from anywhere: an agent's PATH is not that of this shell."""
    own = os.path.abspath(sys.argv[0])
    if os.path.basename(own) == "codexctl" and os.access(own, os.X_OK):
        return own, []
    return sys.executable, ["-m", "codexctl"]
