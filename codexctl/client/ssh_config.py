"""The concrete aliases of ~/.ssh/config, each resolved by ssh itself.

Listing reads the file and what it includes, bounded, and starts no process: completion uses it.
Resolving asks `ssh -G ALIAS`, so that Match, canonical names and every default are ssh's own.
ssh finds its config by the home of the password database, not by HOME; CODEXCTL_SSH_CONFIG names
another file (as `ssh -F` does).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from glob import iglob
from typing import NamedTuple

from codexctl.errors import CodexctlError, ConnectionFailed

ENV_CONFIG = "CODEXCTL_SSH_CONFIG"
MAX_FILE_BYTES = 1 << 20
MAX_FILES = 256  # that are read, all includes together
MAX_DEPTH = 16  # of Include, as in ssh
MAX_ALIASES = 4096
RESOLVE_TIMEOUT_S = 10.0  # Match exec may run a command of the person's

_PATTERN_CHARS = frozenset("*?!")
# What ssh itself refuses in a host name (valid_hostname), and the comma that separates hosts here.
_REFUSED = frozenset("'`\"$\\;&<>|(){},")


class SshTarget(NamedTuple):
    """One alias as `ssh -G` resolved it. Paths are absolute, tokens such as %h are replaced."""

    alias: str
    hostname: str
    user: str
    port: int
    identity_files: tuple[str, ...]
    certificate_files: tuple[str, ...]
    identities_only: bool
    identity_agent: str | None  # a socket; None where no agent is to be asked
    forward_agent: str | None
    known_hosts_files: tuple[str, ...]  # the user's, then the system's
    host_key_alias: str | None
    proxy_jump: tuple[str, ...]  # the first is reached first
    proxy_command: str | None
    batch_mode: bool
    password_prompts: int
    connect_timeout_s: int | None
    alive_interval_s: int
    alive_count: int
    address_family: str  # any, inet or inet6
    compression: bool
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    key_exchanges: tuple[str, ...]
    host_key_algorithms: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]  # SendEnv and SetEnv, the latter last

    @property
    def known_as(self) -> str:
        """The name that known_hosts files hold this host under."""
        if self.host_key_alias is not None:
            return self.host_key_alias
        return self.hostname if self.port == 22 else f"[{self.hostname}]:{self.port}"


class _Budget:
    """How many files may still be read."""

    __slots__ = ("files",)

    def __init__(self) -> None:
        self.files = MAX_FILES


def config_path() -> str:
    """The person's ssh config: CODEXCTL_SSH_CONFIG, else ~/.ssh/config as ssh finds it."""
    return os.environ.get(ENV_CONFIG) or os.path.join(ssh_home(), ".ssh", "config")


def ssh_home() -> str:
    """The home that ssh uses, which HOME does not change."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return os.path.expanduser("~")


def alias_names(path: str | None = None) -> list[str]:
    """Names of Host lines that are no patterns, in the file's order, each once.

    Includes are followed; what stands in a Match block, or is excluded by the Host line around an
    Include, is not listed. A file that is missing or cannot be read has none.
    """
    names: dict[str, None] = {}
    for name in _aliases(path or config_path(), (), (), _Budget()):
        names[name] = None
        if len(names) == MAX_ALIASES:
            break
    return list(names)


def split_line(line: str) -> list[str]:
    """Keyword (in lower case) and arguments of a config line; [] for comments and broken quotes.

    Quotes ' and ", a backslash before a quote, a backslash or a space, and # at the start of an
    argument mean what they mean to ssh.
    """
    match = re.match(r"[ \t\r\f]*([^ \t\r\f=#\"]+)[ \t\r\f]*=?", line.rstrip("\n"))
    if match is None:
        return []
    words = [match[1].lower()]
    rest = line.rstrip("\r\n")[match.end() :]
    at = 0
    while True:
        while at < len(rest) and rest[at] in " \t\f":
            at += 1
        if at == len(rest) or rest[at] == "#":
            return words
        word, at = _argument(rest, at)
        if at < 0:
            return []
        words.append(word)


def _argument(text: str, at: int) -> tuple[str, int]:
    """One argument and where it ends; the end is -1 where a quote is not closed."""
    out: list[str] = []
    quote = ""
    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text) and text[at + 1] in ("'", '"', "\\"):
            at += 1
            out.append(text[at])
        elif char == "\\" and not quote and at + 1 < len(text) and text[at + 1] == " ":
            at += 1
            out.append(" ")
        elif quote:
            if char == quote:
                quote = ""
            else:
                out.append(char)
        elif char in "'\"":
            quote = char
        elif char in " \t\f":
            break
        else:
            out.append(char)
        at += 1
    return "".join(out), -1 if quote else at


def is_concrete(name: str) -> bool:
    """Whether a Host argument names one host that can be asked for."""
    return (
        bool(name)
        and not name.startswith("-")
        and _PATTERN_CHARS.isdisjoint(name)
        and _REFUSED.isdisjoint(name)
        and name.isprintable()
        and " " not in name
    )


def host_matches(patterns: tuple[str, ...], name: str) -> bool:
    """ssh's rule for a Host line: one pattern matches, and no negated one does."""
    matched = False
    for pattern in patterns:
        negated = pattern.startswith("!")
        if _wildcard(pattern[1:] if negated else pattern, name):
            if negated:
                return False
            matched = True
    return matched


def _wildcard(pattern: str, name: str) -> bool:
    # Linear in both, also for patterns such as *a*a*a*a*b, where a regular expression is not.
    at = mark = 0
    star = -1
    for_name = 0
    while for_name < len(name):
        if at < len(pattern) and pattern[at] == "*":
            star, mark = at, for_name
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", name[for_name]):
            at += 1
            for_name += 1
        elif star >= 0:
            mark += 1
            at, for_name = star + 1, mark
        else:
            return False
    return all(char == "*" for char in pattern[at:])


def _aliases(
    path: str, guards: tuple[tuple[str, ...], ...], above: tuple[str, ...], budget: _Budget
) -> Iterator[str]:
    real = os.path.realpath(path)
    if real in above or len(above) > MAX_DEPTH or budget.files == 0:
        return
    budget.files -= 1
    try:
        # O_NONBLOCK: a FIFO in an included folder must not hold up completion.
        with open(
            real, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return
    if data is None or len(data) > MAX_FILE_BYTES:
        return
    block: tuple[str, ...] | None = ("*",)  # None inside Match
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        words = split_line(line)
        if not words:
            continue
        keyword, *arguments = words
        if keyword == "match":
            block = None
        elif keyword == "host":
            block = tuple(arguments)
            for name in arguments:
                if (
                    is_concrete(name)
                    and host_matches(block, name)
                    and all(host_matches(guard, name) for guard in guards)
                ):
                    yield name
        elif keyword == "include" and block is not None:
            for argument in arguments:
                pattern = os.path.join(ssh_home(), ".ssh", _tilde(argument))
                for included in sorted(iglob(pattern)):
                    yield from _aliases(included, (*guards, block), (*above, real), budget)


def find_alias(name: str, path: str | None = None) -> SshTarget | None:
    """Resolve `ALIAS` or `USER@ALIAS`; None where the config has no such alias.

    ConnectionFailed where ssh is missing or refuses its config.
    """
    user, at, alias = name.rpartition("@")
    # A user's name may become part of a ProxyCommand, so it is held to what a host's may be.
    if (at and not is_concrete(user)) or alias not in alias_names(path):
        return None
    return resolve(alias, user=user if at else None, path=path)


def resolve(
    alias: str, *, user: str | None = None, port: int | None = None, path: str | None = None
) -> SshTarget:
    """Ask `ssh -G` for all that concerns a name (an alias, or a hop of a ProxyJump)."""
    import subprocess

    config = path or os.environ.get(ENV_CONFIG)
    command = ["ssh", "-G", *(["-F", config] if config else [])]
    command += [*(["-l", user] if user else []), *(["-p", str(port)] if port else [])]
    hint = f"see what ssh says: ssh -G {alias}"
    try:
        answer = subprocess.run(
            [*command, "--", alias],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RESOLVE_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise ConnectionFailed(
            "ssh is not installed here", hint="install it: sudo apt-get install openssh-client"
        ) from None
    except subprocess.TimeoutExpired:
        raise ConnectionFailed(
            f"ssh -G {alias} took longer than {RESOLVE_TIMEOUT_S:.0f} seconds", hint=hint
        ) from None
    except OSError as error:
        raise ConnectionFailed(f"cannot run ssh: {error.strerror}", hint=hint) from error
    if answer.returncode:
        lines = answer.stderr.decode(errors="replace").strip().splitlines()
        raise ConnectionFailed(
            f"ssh cannot resolve {alias}: {lines[-1] if lines else 'no reason given'}", hint=hint
        )
    try:
        return parse_resolved(alias, answer.stdout.decode("utf-8", "surrogateescape"))
    except (KeyError, ValueError) as error:
        raise ConnectionFailed(
            f"ssh -G {alias} answered without a usable {error}", hint=hint
        ) from None


def parse_resolved(alias: str, text: str) -> SshTarget:
    """What `ssh -G` printed as a record; KeyError or ValueError name a missing or odd line."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key.lower(), []).append(value.strip())

    def one(key: str, default: str = "") -> str:
        return values.get(key, [default])[0]

    def several(key: str) -> tuple[str, ...]:
        return tuple(item for item in one(key).split(",") if item)

    def number(key: str, default: int) -> int:
        value = one(key)
        return int(value) if value.isdecimal() else default

    port = int(values["port"][0])
    jump = one("proxyjump", "none")
    tokens = _tokens(alias, values["hostname"][0], values["user"][0], port, jump, values)

    def paths(key: str, *, split: bool) -> tuple[str, ...]:
        found = [part for value in values.get(key, []) for part in _words(value, split)]
        return tuple(
            os.path.join(ssh_home(), _tilde(expand_tokens(part, tokens)))
            for part in found
            if part != "none"
        )

    command = one("proxycommand", "none")
    known_as = one("hostkeyalias")
    return SshTarget(
        alias=alias,
        hostname=tokens["h"],
        user=tokens["r"],
        port=port,
        identity_files=paths("identityfile", split=False),
        certificate_files=paths("certificatefile", split=False),
        identities_only=one("identitiesonly") == "yes",
        identity_agent=_agent(one("identityagent", "SSH_AUTH_SOCK"), tokens),
        forward_agent=_forwarded(one("forwardagent", "no"), one("identityagent"), tokens),
        known_hosts_files=paths("userknownhostsfile", split=True)
        + paths("globalknownhostsfile", split=True),
        host_key_alias=known_as if known_as and known_as != "none" else None,
        proxy_jump=tuple(jump.split(",")) if jump.lower() != "none" else (),
        proxy_command=expand_tokens(command, tokens) if command.lower() != "none" else None,
        batch_mode=one("batchmode") == "yes",
        password_prompts=number("numberofpasswordprompts", 3),
        connect_timeout_s=number("connecttimeout", 0) or None,
        alive_interval_s=number("serveraliveinterval", 0),
        alive_count=number("serveralivecountmax", 3),
        address_family=one("addressfamily", "any"),
        compression=one("compression") == "yes",
        ciphers=several("ciphers"),
        macs=several("macs"),
        key_exchanges=several("kexalgorithms"),
        host_key_algorithms=several("hostkeyalgorithms"),
        environment=_environment(values),
    )


def expand_tokens(text: str, tokens: dict[str, str]) -> str:
    """Replace %h and its like, and ${NAME} by the environment; an unknown token stays as it is."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return tokens.get(match[1], match[0])
        return os.environ.get(match[2], match[0])

    return re.sub(r"%(.)|\$\{(\w+)\}", value, text)


def _tokens(
    alias: str, hostname: str, user: str, port: int, jump: str, values: dict[str, list[str]]
) -> dict[str, str]:
    import hashlib
    import socket

    if not hostname or not user:
        raise ValueError("hostname and user")
    here = socket.gethostname()
    jump = "" if jump.lower() == "none" else jump
    joined = f"{here}{hostname}{port}{user}{jump}".encode("utf-8", "surrogateescape")
    return {
        "%": "%",
        "C": hashlib.sha1(joined, usedforsecurity=False).hexdigest(),
        "d": ssh_home(),
        "h": hostname,
        "i": str(os.getuid()),
        "j": jump,
        "k": values.get("hostkeyalias", [alias])[0],
        "L": here.split(".")[0],
        "l": here,
        "n": alias,
        "p": str(port),
        "r": user,
        "u": os.environ.get("USER", user),
    }


def _tilde(path: str) -> str:
    if path == "~" or path.startswith("~/"):
        return ssh_home() + path[1:]
    return os.path.expanduser(path)


def _words(value: str, split: bool) -> list[str]:
    if not split:
        return [value] if value else []
    return split_line(f"x {value}")[1:]


def _agent(value: str, tokens: dict[str, str]) -> str | None:
    if value == "none":
        return None
    if value in ("", "SSH_AUTH_SOCK"):
        return os.environ.get("SSH_AUTH_SOCK") or None
    if value.startswith("$"):
        return os.environ.get(value[1:].strip("{}")) or None
    return os.path.join(ssh_home(), _tilde(expand_tokens(value, tokens)))


def _forwarded(value: str, agent: str, tokens: dict[str, str]) -> str | None:
    if value == "no":
        return None
    return _agent(agent if value == "yes" else value, tokens)


def _environment(values: dict[str, list[str]]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for pattern in (word for line in values.get("sendenv", []) for word in line.split()):
        found.update((name, text) for name, text in os.environ.items() if _wildcard(pattern, name))
    for line in values.get("setenv", []):
        name, equals, text = line.partition("=")
        if equals:
            found[name] = text
    return tuple(found.items())


def split_hop(hop: str) -> tuple[str | None, str, int | None]:
    """User, host and port of one hop of a ProxyJump: `[user@]host[:port]` or an ssh:// URL.

    CodexctlError where it is none.
    """
    match = re.fullmatch(
        r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:/@]+))"
        r"(?::(?P<port>\d{1,5}))?/?",
        hop.strip(),
    )
    if match is None:
        raise CodexctlError(
            f"ProxyJump {hop!r} is no host", hint="write it as user@host:port in the ssh config"
        )
    port = match["port"]
    return match["user"], match["v6"] or match["host"], int(port) if port else None
