"""The policy file: what paired devices may have this host do. Parsing and merging, then loading.

Two files of one form. The owner's (CODEXCTL_HOME/policy.toml) replaces defaults; the system-wide
one (/etc/codexctl/policy.toml) only tightens what comes out: of a choice the stricter value holds,
what is hidden or denied adds up, and what is allowed has to be allowed by both. A file that cannot
be obeyed to the letter (unknown key, wrong type, unreadable) is a `PolicyError` with its line.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from codexctl.agent.mode_order import APPROVALS, SANDBOXES
from codexctl.errors import PolicyError, Refused

SYSTEM_POLICY = "/etc/codexctl/policy.toml"
MAX_POLICY_BYTES = 1 << 20

SCOPES = ("view", "exec", "approve")

# Names taken from the login environment: what toolchains and terminals need and no credential.
DEFAULT_ENVIRONMENT = (
    "HOME", "USER", "LOGNAME", "SHELL", "PATH", "MANPATH", "LANG", "LANGUAGE", "LC_*", "TZ",
    "TERM", "TERMINFO", "COLORTERM", "NO_COLOR", "CLICOLOR", "EDITOR", "VISUAL", "PAGER", "LESS",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "NIX_*", "LOCALE_ARCHIVE",
    "PYENV_ROOT", "PYENV_SHELL", "NVM_DIR", "NVM_BIN", "FNM_DIR", "VOLTA_HOME", "BUN_INSTALL",
    "DENO_INSTALL", "PNPM_HOME", "CARGO_HOME", "RUSTUP_HOME", "GOPATH", "GOROOT", "GOBIN",
    "JAVA_HOME", "SDKMAN_DIR", "RBENV_ROOT", "ASDF_DIR", "ASDF_DATA_DIR", "MISE_DATA_DIR",
    "UV_PYTHON_INSTALL_DIR", "UV_TOOL_DIR", "CONDA_EXE", "DOTNET_ROOT", "ANDROID_HOME",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
)  # fmt: skip


class Source(NamedTuple):
    """Where a value stands: a file and line, or no file for the default."""

    path: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.path else "default"


class Entry(NamedTuple):
    """A setting as a file has it: a choice, or a list with the source of each item."""

    value: str | tuple[str, ...]
    source: Source
    items: tuple[Source, ...] = ()

    def rules(self) -> tuple[tuple[str, Source], ...]:
        if isinstance(self.value, str):
            return ((self.value, self.source),)
        if not self.items:
            return tuple((item, self.source) for item in self.value)
        return tuple(zip(self.value, self.items, strict=True))


class Setting(NamedTuple):
    """The form of one key. `choices`, strictest first, or a list checked by `item`.

    `adds` lists are united over both files; the others have to be met in each file that has them.
    """

    summary: str
    default: str | tuple[str, ...] | None
    choices: tuple[str, ...] = ()
    item: Callable[[str], str | None] | None = None
    adds: bool = False


def _path_item(text: str) -> str | None:
    if "\0" in text or not (text.startswith(("/", "~/")) or text == "~"):
        return f"{text!r} is not an absolute path or one that begins with ~/"
    return None


def _name_item(text: str) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*\*?|\*", text):
        return f"{text!r} is not the name of a variable (a * may stand at its end)"
    return None


def _program_item(text: str) -> str | None:
    if not text or "\0" in text or ("/" in text and not text.startswith(("/", "~/"))):
        return f"{text!r} is neither the name of a program nor an absolute path"
    return None


def _scope_item(text: str) -> str | None:
    return None if text in SCOPES else f"{text!r} is not one of {', '.join(SCOPES)}"


SETTINGS: Mapping[str, Setting] = {
    "sandbox.mode": Setting(
        "whether a device may ask for no sandbox", "required", ("required", "optional")
    ),
    "sandbox.hidden": Setting(
        "paths that commands cannot read, besides the credentials of the home",
        (), item=_path_item, adds=True,
    ),
    "sandbox.readable": Setting(
        "paths outside the workspace that commands can read, besides the system's",
        (), item=_path_item,
    ),
    "network.mode": Setting(
        "whether commands reach the network", "on-request", ("never", "on-request", "always")
    ),
    "workspace.roots": Setting(
        "folders in which commands may run; unset: the host's workspace", None, item=_path_item
    ),
    "environment.allow": Setting(
        "variables that commands get from the login environment",
        DEFAULT_ENVIRONMENT, item=_name_item,
    ),
    "environment.accept": Setting(
        "variables that a device may set", ("*",), item=_name_item
    ),
    "programs.allow": Setting(
        "programs that may be started; unset: all", None, item=_program_item
    ),
    "programs.deny": Setting(
        "programs that may not be started", (), item=_program_item, adds=True
    ),
    "devices.scopes": Setting(
        "scopes that pairing may grant and paired devices may use", SCOPES, item=_scope_item
    ),
    "threads.sandbox": Setting(
        "the widest sandbox that a device may ask for a thread",
        "workspace-write", SANDBOXES,
    ),
    "threads.approval": Setting(
        "how seldom a device may have a thread ask before it acts",
        "on-request", APPROVALS,
    ),
    "audit.argv": Setting(
        "whether records hold whole command lines or the program alone",
        "full", ("full", "programs-only"),
    ),
    "audit.sync": Setting(
        "whether a record is on the disk before the command starts, or a second later",
        "batched", ("each", "batched"),
    ),
}  # fmt: skip

Layer = Mapping[str, Entry]


def parse_policy(text: str, path: str) -> Layer:
    """The settings of one file. `path` is for sentences only. PolicyError names file and line."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        reason = re.sub(r" \(at .*\)$", "", str(error))
        raise _broken(path, line, f"is not TOML: {reason[:1].lower()}{reason[1:]}") from None
    lines = _Lines(text, path)
    layer: dict[str, Entry] = {}
    known_tables = {name.split(".")[0] for name in SETTINGS}
    for table, content in tables.items():
        if table not in known_tables:
            raise _broken(path, lines.find(table), f"has an unknown table [{table}]", known_tables)
        if not isinstance(content, dict):
            raise _broken(path, lines.find(table), f"{table} has to be a table")
        for key, value in content.items():
            name = f"{table}.{key}"
            line = lines.find(table, key)
            if name not in SETTINGS:
                known = {n.split(".")[1] for n in SETTINGS if n.startswith(f"{table}.")}
                raise _broken(path, line, f"has an unknown key {key} in [{table}]", known)
            layer[name] = _entry(name, value, line, lines)
    return layer


def _entry(name: str, value: Any, line: int, lines: _Lines) -> Entry:
    setting = SETTINGS[name]
    source = Source(lines.path, line)
    if setting.choices:
        if not isinstance(value, str) or value not in setting.choices:
            choices = " or ".join(f'"{choice}"' for choice in setting.choices)
            raise _broken(lines.path, line, f"{name} has to be {choices}")
        return Entry(value, source)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _broken(lines.path, line, f"{name} has to be a list of texts")
    sources = []
    for item in value:
        at = lines.find_item(item, line)
        wrong = setting.item(item) if setting.item else None
        if wrong:
            raise _broken(lines.path, at, f"{name}: {wrong}")
        sources.append(Source(lines.path, at))
    return Entry(tuple(value), source, tuple(sources))


class _Lines:
    """Finds the line (from 1) of a key of a text that is known to be TOML; tomllib tells none."""

    _HEADER = re.compile(r"\s*\[\s*([^\]]*?)\s*\]\s*(#.*)?$")
    _KEY = re.compile(
        r"""\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*="""
    )

    def __init__(self, text: str, path: str) -> None:
        self.path = path
        self._text = text.split("\n")

    def find(self, table: str, key: str = "") -> int:
        current = ""
        first = 0
        for number, line in enumerate(self._text, 1):
            if header := self._HEADER.match(line):
                current = _plain(header[1])
                name = current
            elif match := self._KEY.match(line):
                name = f"{current}.{_plain(match[1])}".lstrip(".")
            else:
                continue
            if name == (f"{table}.{key}" if key else table):
                return number
            if not first and (name == table or name.startswith(f"{table}.")):
                first = number  # an inline table, or a table known by its keys alone
        return first or 1

    def find_item(self, item: str, start: int) -> int:
        for number in range(start, len(self._text) + 1):
            if f'"{item}"' in self._text[number - 1] or f"'{item}'" in self._text[number - 1]:
                return number
        return start


def _plain(key: str) -> str:
    return re.sub(r"[\s\"']", "", key)


def _broken(path: str, line: int, what: str, known: Iterable[str] = ()) -> PolicyError:
    hint = f"known here: {', '.join(sorted(known))}" if known else ""
    return PolicyError(
        f"{path} line {line}: {what}",
        hint=hint or f"mend it, then run: codexctl host policy check {path}",
    )


class Policy:
    """The effective policy: `owner` settings over defaults, tightened by `system` settings.

    `home` is what ~ stands for. Questions are answered with the source of the rule that decides.
    """

    def __init__(self, owner: Layer, system: Layer, home: str) -> None:
        defaults = {
            name: Entry(setting.default, Source())
            for name, setting in SETTINGS.items()
            if setting.default is not None
        }
        self._owner: Layer = {**defaults, **owner}
        self._system = system
        self._home = home

    def _layers(self, name: str) -> list[Entry]:
        return [layer[name] for layer in (self._owner, self._system) if name in layer]

    def choice(self, name: str) -> tuple[str, Source]:
        """The strictest value of a setting with choices, and where it stands."""
        order = SETTINGS[name].choices
        rules = [rule for entry in self._layers(name) for rule in entry.rules()]
        return min(rules, key=lambda rule: order.index(rule[0]))

    def rules(self, name: str) -> list[tuple[tuple[str, Source], ...]]:
        """The items of a list setting, one tuple a file that has it; paths are real paths."""
        found = [entry.rules() for entry in self._layers(name)]
        if SETTINGS[name].item in (_path_item, _program_item):
            found = [tuple((self._expand(i), source) for i, source in rules) for rules in found]
        return found

    def _expand(self, item: str) -> str:
        if item == "~" or item.startswith("~/"):
            item = self._home + item[1:]
        return os.path.realpath(item) if "/" in item else item

    @property
    def sandbox_required(self) -> bool:
        return self.choice("sandbox.mode")[0] == "required"

    @property
    def network(self) -> str:
        return self.choice("network.mode")[0]

    @property
    def full_argv(self) -> bool:
        return self.choice("audit.argv")[0] == "full"

    @property
    def sync_each(self) -> bool:
        return self.choice("audit.sync")[0] == "each"

    @property
    def hidden(self) -> tuple[tuple[str, Source], ...]:
        return tuple(rule for rules in self.rules("sandbox.hidden") for rule in rules)

    @property
    def scopes(self) -> frozenset[str]:
        """Scopes that pairing may grant."""
        return frozenset.intersection(
            *(frozenset(item for item, _ in rules) for rules in self.rules("devices.scopes"))
        )

    @property
    def readable(self) -> tuple[str, ...]:
        """Paths added to what commands can read: the owner's, within the system's where set."""
        owner, *system = self.rules("sandbox.readable")
        return tuple(path for path, _ in owner if all(_within_any(path, bound) for bound in system))

    @property
    def denied_programs(self) -> tuple[tuple[str, Source], ...]:
        return tuple(rule for rules in self.rules("programs.deny") for rule in rules)

    def allows_variable(self, name: str, *, from_device: bool = False) -> bool:
        setting = "environment.accept" if from_device else "environment.allow"
        return all(
            any(fnmatchcase(name, pattern) for pattern, _ in rules) for rules in self.rules(setting)
        )

    def check_folder(self, path: str, workspace: str) -> str:
        """The folder that may be written when a command runs in `path` (both real paths).

        That is the workspace, or the part of it that the policy's roots leave, or another root
        of the policy. Refused where the path lies in none.
        """
        layers = self.rules("workspace.roots")
        for rules in layers:
            if not _within_any(path, rules):
                where = rules[0][1] if rules else "the policy, which has none"
                raise Refused(
                    f"{path} lies in no workspace root of {where}",
                    hint="see on the host: codexctl host policy show",
                )
        if "workspace.roots" not in self._owner and not _within(path, workspace):
            raise Refused(
                f"{path} lies outside the workspace {workspace}",
                hint="name a folder below it, or have the host's owner set workspace.roots",
            )
        candidates = [workspace, *(root for rules in layers for root, _ in rules)]
        return next(
            root
            for root in candidates
            if _within(path, root) and all(_within_any(root, rules) for rules in layers)
        )

    def check_program(self, names: Iterable[str]) -> None:
        """Refused where a program, known by these paths and names, may not be started."""
        known = {form for name in names for form in (name, os.path.basename(name))}
        for pattern, source in self.denied_programs:
            if pattern in known:
                raise Refused(
                    f"the policy of this host denies {pattern} ({source})",
                    hint="see on the host: codexctl host policy show",
                )
        for rules in self.rules("programs.allow"):
            if not any(pattern in known for pattern, _ in rules):
                raise Refused(
                    f"the policy of this host does not allow {min(known, key=len)} "
                    f"(programs.allow, {rules[0][1] if rules else 'empty'})",
                    hint="see on the host: codexctl host policy show",
                )

    def effective(self) -> dict[str, list[dict[str, str]] | None]:
        """For each setting what holds, values with their `source`; None for one that is not set."""
        shown: dict[str, list[dict[str, str]] | None] = {}
        for name, setting in SETTINGS.items():
            if setting.choices:
                value, source = self.choice(name)
                shown[name] = [{"value": value, "source": str(source)}]
                continue
            layers = self.rules(name)
            rows = {
                item: {"value": item, "source": str(source)}
                for rules in layers
                for item, source in rules
                if setting.adds or all(_covers(name, item, other) for other in layers)
            }
            shown[name] = list(rows.values()) if layers else None
        return shown


def _covers(name: str, item: str, rules: tuple[tuple[str, Source], ...]) -> bool:
    if SETTINGS[name].item is _path_item:
        return _within_any(item, rules)
    if SETTINGS[name].item is _name_item:
        return any(fnmatchcase(item, pattern) for pattern, _ in rules)
    return any(item == pattern for pattern, _ in rules)


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _within_any(path: str, rules: Iterable[tuple[str, Source]]) -> bool:
    return any(_within(path, root) for root, _ in rules)


def read_layer(path: str) -> Layer:
    """The settings of the file at `path`; none where there is no such file. PolicyError."""
    try:
        # A pipe of that name must not hold the host up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PolicyError(
            f"cannot read {path}: {error.strerror}", hint=f"check the owner and mode of {path}"
        ) from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise PolicyError(f"{path} is not a regular file", hint="move it away")
        if mode & 0o022:
            raise PolicyError(
                f"{path} can be changed by others (mode {mode & 0o777:04o})",
                hint=f"run: chmod go-w {path}",
            )
        with os.fdopen(fd, "rb", closefd=False) as file:
            raw = file.read(MAX_POLICY_BYTES + 1)
    finally:
        os.close(fd)
    if len(raw) > MAX_POLICY_BYTES:
        raise PolicyError(f"{path} is larger than {MAX_POLICY_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _broken(path, line, "is not UTF-8") from None
    return parse_policy(text.replace("\r\n", "\n"), path)


def load_policy(
    owner_path: str, *, system_path: str = SYSTEM_POLICY, home: str | None = None
) -> Policy:
    """The effective policy of both files; a missing one has no say. PolicyError."""
    person = home if home is not None else os.path.expanduser("~")
    return Policy(read_layer(owner_path), read_layer(system_path), person)
