"""The host as a service of its person: a systemd user unit, or a launchd agent on macOS.

Texts first (no I/O but the template), then what is done with them. The unit hardens what bubblewrap
does not need; systemd's own file system protections would take user namespaces from it.
"""

from __future__ import annotations

import hashlib
import os
import plistlib
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from codexctl.errors import StateError, UsageError
from codexctl.paths import ENV_HOME, Home
from codexctl.provision.templates import render
from codexctl.state.files import describe_os_error, replace_file

TEMPLATE = "codexctl-host.service.j2"
TOOL_S = 30.0
LINGER = "/var/lib/systemd/linger"
_SYSTEMD_CONFIG = ".config/systemd/user"
_LAUNCH_AGENTS = "Library/LaunchAgents"


@dataclass(frozen=True, slots=True)
class Service:
    """A service to install: `path` of its file, `unit` its name, `text` the content."""

    unit: str
    path: str
    text: bytes
    manager: str
    """"systemd" or "launchd"."""

    @property
    def start(self) -> tuple[list[str], ...]:
        """The commands that make the manager know and start it."""
        if self.manager == "launchd":
            return (["launchctl", "bootstrap", f"gui/{os.getuid()}", self.path],)
        return (
            ["systemctl", "--user", "daemon-reload"],
            ["systemctl", "--user", "enable", "--now", self.unit],
        )

    @property
    def stop(self) -> tuple[list[str], ...]:
        if self.manager == "launchd":
            return (["launchctl", "bootout", f"gui/{os.getuid()}/{self.unit}"],)
        return (["systemctl", "--user", "disable", "--now", self.unit],)


def unit_name(home: Home) -> str:
    """One name for each identity: the default home's is plain, others carry a mark of theirs."""
    if home.path == os.path.join(os.path.expanduser("~"), ".codexctl"):
        return "codexctl-host"
    return f"codexctl-host-{hashlib.sha256(os.fsencode(home.path)).hexdigest()[:8]}"


def systemd_quoted(word: str) -> str:
    """A word of ExecStart= or Environment= that systemd takes as it is (systemd.service(5))."""
    if any(ord(character) < 32 for character in word):
        raise UsageError(f"a service cannot hold the word {word!r}")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def host_service(home: Home, arguments: list[str], name: str, *, manager: str = "") -> Service:
    """The service that runs `codexctl host serve ARGUMENTS` for this home. It is not installed."""
    manager = manager or ("launchd" if sys.platform == "darwin" else "systemd")
    person = os.path.expanduser("~")
    command = [sys.executable, "-m", "codexctl", "host", "serve", *arguments]
    unit = unit_name(home)
    if manager == "launchd":
        label = f"dev.codexctl.{unit}"
        text = plistlib.dumps(
            {
                "Label": label,
                "ProgramArguments": command,
                "EnvironmentVariables": {ENV_HOME: home.path},
                "RunAtLoad": True,
                "KeepAlive": {"SuccessfulExit": False},
                "ThrottleInterval": 10,
                "StandardErrorPath": home.join("host.log"),
            }
        )
        return Service(label, os.path.join(person, _LAUNCH_AGENTS, f"{label}.plist"), text, manager)
    bwrap = shutil.which("bwrap")
    # A bwrap that is setuid (old Debian without user namespaces) needs to gain its privileges.
    is_setuid = bwrap is not None and bool(os.stat(bwrap).st_mode & stat.S_ISUID)
    text = render(
        home,
        TEMPLATE,
        filters={"systemd": systemd_quoted},
        name=name,
        command=command,
        environment={ENV_HOME: home.path},
        no_new_privileges=not is_setuid,
    ).encode()
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.join(person, ".config")
    path = os.path.join(folder, "systemd", "user", f"{unit}.service")
    return Service(f"{unit}.service", path, text, manager)


def verify(service: Service) -> str:
    """What `systemd-analyze verify` says against the unit; empty where it is good or not judged.

    Not judged is where that tool is absent, or on launchd.
    """
    tool = shutil.which("systemd-analyze")
    if tool is None or service.manager != "systemd":
        return ""
    with tempfile.TemporaryDirectory(prefix="codexctl-unit-") as folder:
        path = os.path.join(folder, service.unit)
        with open(path, "wb") as file:
            file.write(service.text)
        try:
            done = subprocess.run(
                [tool, "--user", "verify", path],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TOOL_S,
                check=False,
                env={**os.environ, "XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", folder)},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"systemd-analyze does not run: {error}"
    # Other units of the machine may be wrong as well, and an older systemd does not know each key:
    # neither is this unit's fault.
    lines = [
        line.replace(f"{folder}/", "")
        for line in done.stderr.decode(errors="replace").splitlines()
        if service.unit in line and "Unknown key" not in line and "Unknown lvalue" not in line
    ]
    return "\n".join(lines)


def install(service: Service) -> list[str]:
    """Write the file and start the service. The commands that could not be run are returned.

    StateError where the unit is not accepted or the file cannot be written.
    """
    complaint = verify(service)
    if complaint:
        raise StateError(
            f"systemd does not accept the unit: {complaint.splitlines()[0]}",
            hint="see it with: codexctl host install --dry-run",
        )
    try:
        os.makedirs(os.path.dirname(service.path), exist_ok=True)
    except OSError as error:
        raise describe_os_error(error, os.path.dirname(service.path), "make") from error
    replace_file(service.path, service.text, mode=0o644)
    return _run_all(service.start)


def uninstall(service: Service) -> bool:
    """Stop the service and remove its file; False where there was none."""
    if not os.path.lexists(service.path):
        return False
    _run_all(service.stop)
    try:
        os.unlink(service.path)
    except OSError as error:
        raise describe_os_error(error, service.path, "remove") from error
    if service.manager == "systemd":
        _run_all((["systemctl", "--user", "daemon-reload"],))
    return True


def _run_all(commands: tuple[list[str], ...]) -> list[str]:
    """Run them in order; from the first that fails on they are returned, for the person to run."""
    for index, command in enumerate(commands):
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TOOL_S,
                check=False,
            )
            failed = done.returncode != 0
        except (OSError, subprocess.TimeoutExpired):
            failed = True
        if failed:
            return [" ".join(words) for words in commands[index:]]
    return []


def linger_hint(service: Service) -> str:
    """The command that lets the service run without a login, where that is not so yet."""
    import getpass

    if service.manager != "systemd":
        return ""
    user = getpass.getuser()
    return "" if os.path.exists(os.path.join(LINGER, user)) else f"loginctl enable-linger {user}"
