"""Give workspaces their names in ssh: a file of codexctl's own, and one Include in the person's.

The file is rendered whole from the journal, so writing it twice is writing it once. It replaces the
old one only after `ssh -G` has understood it. The person's ~/.ssh/config is touched twice in all:
for the Include line at its top, and for taking it out when the last workspace is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from codexctl.client.ssh_config import config_path, split_line
from codexctl.errors import CodexctlError, StateError, UsageError
from codexctl.paths import Home
from codexctl.provision.templates import render
from codexctl.state.files import describe_os_error, replace_file

SSH_TIMEOUT_S = 10.0
MAX_CONFIG_BYTES = 4 << 20
MAX_INCLUDE_DEPTH = 16
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the template sees of a workspace."""

    name: str
    id: str
    address: str
    port: int
    user: str
    key: str
    known_hosts: str
    alias: str
    proxy_jump: str
    provider: str


class SshConfig:
    """codexctl's file for one home, and the person's config that includes it."""

    def __init__(self, home: Home, user_config: str | None = None) -> None:
        self.home = home
        self.user_config = user_config or config_path()
        self.folder = os.path.dirname(self.user_config)
        self.own = home.join("ssh_config")

    def write(self, entries: Sequence[Entry]) -> None:
        """Make ssh know exactly these workspaces; with none, leave no trace.

        UsageError for an alias that exists elsewhere; StateError for files that cannot be written;
        CodexctlError for a template that ssh does not understand. The old files stay then.
        """
        with self._locked():
            if not entries:
                self._drop_include()
                _unlink(self.own)
                return
            for entry in entries:
                self.check_name(entry.name)
            data = self.render(entries)
            self._check(data, entries)
            replace_file(self.own, data.encode())
            self._add_include()

    def render(self, entries: Sequence[Entry]) -> str:
        return render(self.home, "ssh_config.j2", workspaces=entries)

    def check_name(self, name: str) -> None:
        """Refuse a name that is no concrete alias, or that ~/.ssh/config has for something else."""
        if not NAME.match(name):
            raise UsageError(
                f"{name!r} cannot be a workspace's name",
                hint="use lower-case letters, digits and hyphens, at most 63",
            )
        for path, line, words in host_lines(self.user_config, skip=self.own):
            if name in words:
                raise UsageError(
                    f"the alias {name} exists already in {path} line {line}",
                    hint="choose another --name, or rename that one",
                )

    def rehearse(self, entry: Entry) -> None:
        """What `write` would find wrong, before a machine is ordered that it could not name."""
        self.check_name(entry.name)
        folder = os.path.dirname(os.path.realpath(self.user_config))
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise StateError(
                f"{folder} cannot be written, so ssh cannot learn the name {entry.name}",
                hint=f"check the owner and mode of {folder}",
            )
        self._read_user_config()
        self._check(self.render([entry]), [entry])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.home.ensure()
        path = self.home.join("ssh_config.lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise describe_os_error(error, path, "make") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _check(self, text: str, entries: Sequence[Entry]) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".ssh_config") as file:
            file.write(text)
            file.flush()
            for entry in (entries[0], entries[-1]):
                said = resolve(file.name, entry.name)
                wanted = {"hostname": entry.address.lower(), "port": str(entry.port)}
                for key, value in wanted.items():
                    if said.get(key, "").lower() != value:
                        raise CodexctlError(
                            f"the ssh template gives {entry.name} {key} {said.get(key)}, "
                            f"not {value}",
                            hint="mend your own templates/ssh_config.j2, or move it away",
                        )

    def _include_line(self) -> str:
        path = self.own
        if any(character.isspace() for character in path):
            path = f'"{path}"'
        return f"Include {path}"

    def _read_user_config(self) -> tuple[str, int]:
        """Text and mode; ("", 0600) where there is none."""
        try:
            with open(self.user_config, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                data = file.read(MAX_CONFIG_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return "", 0o600
        except OSError as error:
            raise describe_os_error(error, self.user_config, "read") from error
        if len(data) > MAX_CONFIG_BYTES:
            raise StateError(f"{self.user_config} is larger than {MAX_CONFIG_BYTES} bytes")
        return data.decode("utf-8", "surrogateescape"), mode

    def _write_user_config(self, text: str, mode: int) -> None:
        # A config that is a symlink (dotfiles) stays one: its target is replaced.
        target = os.path.realpath(self.user_config)
        replace_file(target, text.encode("utf-8", "surrogateescape"), mode=mode)

    def _add_include(self) -> None:
        line = self._include_line()
        text, mode = self._read_user_config()
        first, *_ = lines = text.split("\n")
        if first.strip() == line:
            return
        kept = [other for other in lines if other.strip() != line]
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise describe_os_error(error, self.folder, "make") from error
        self._write_user_config("\n".join([line, *kept]), mode)

    def _drop_include(self) -> None:
        line = self._include_line()
        text, mode = self._read_user_config()
        lines = text.split("\n")
        kept = [other for other in lines if other.strip() != line]
        if len(kept) == len(lines):
            return
        if not any(kept) and not os.path.islink(self.user_config):
            _unlink(self.user_config)
            return
        self._write_user_config("\n".join(kept), mode)


def resolve(config: str, alias: str) -> dict[str, str]:
    """What `ssh -G` makes of an alias, as lower-case keys; CodexctlError when it does not parse."""
    try:
        done = subprocess.run(
            ["ssh", "-G", "-F", config, alias],
            check=False,
            capture_output=True,
            timeout=SSH_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise CodexctlError("there is no ssh here", hint="install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise CodexctlError(f"ssh -G did not end within {SSH_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise CodexctlError(
            f"ssh does not understand the rendered config: {reason[0] if reason else 'no reason'}",
            hint="mend your own templates/ssh_config.j2, or move it away",
        )
    said: dict[str, str] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key.lower(), value)
    return said


def host_lines(
    path: str, *, skip: str = "", depth: int = 0
) -> Iterator[tuple[str, int, list[str]]]:
    """(file, line, words) of every Host line of a config and of what it includes.

    A file that cannot be read is passed over: ssh itself will say so. `skip` is codexctl's own.
    """
    if depth > MAX_INCLUDE_DEPTH or os.path.realpath(path) == os.path.realpath(skip or os.devnull):
        return
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(MAX_CONFIG_BYTES).splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        keyword, *words = split_line(line) or [""]
        if keyword == "host":
            yield path, number, words
        elif keyword == "include":
            for word in words:
                for included in _included(word, os.path.dirname(path)):
                    yield from host_lines(included, skip=skip, depth=depth + 1)


def _included(pattern: str, folder: str) -> list[str]:
    from glob import glob

    pattern = os.path.expanduser(pattern)
    if not os.path.isabs(pattern):
        pattern = os.path.join(folder, pattern)
    return sorted(glob(pattern))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise describe_os_error(error, path, "remove") from error
