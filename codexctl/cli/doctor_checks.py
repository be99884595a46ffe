"""The checks of `codexctl doctor`: one function for one hop, each with what to do when it fails.

A check returns an Outcome or raises a CodexctlError, whose sentence and hint become one.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from codexctl.errors import CodexctlError
from codexctl.paths import ENV_HOME, Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.store import HostRecord

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
CLOCK_WARN_S = 30
CLOCK_FAIL_S = 300  # pairings last as long
LOW_DISK_BYTES = 64 << 20
PROGRAM_TIMEOUT_S = 20.0
TOKEN_WARN_S = 7 * 86400
# Files of a home that hold keys, tokens or what was run.
PRIVATE_ENDINGS = (".key", ".pem", ".db", ".db-wal", ".db-shm", ".sock", ".jsonl", ".token")


class Outcome(NamedTuple):
    status: str
    detail: str
    remedy: str = ""


class Check(NamedTuple):
    """The result of one check as it is shown; `remedy` is empty where nothing is to be done."""

    name: str
    status: str
    detail: str
    remedy: str
    duration_ms: float


Step = tuple[str, Callable[[], Outcome]]


def run_step(step: Step) -> Check:
    """Run one check; whatever it raises that is expected is its failure."""
    name, function = step
    started = time.perf_counter()
    try:
        outcome = function()
    except CodexctlError as error:
        outcome = Outcome(FAIL, error.message, error.hint)
    except OSError as error:
        outcome = Outcome(FAIL, f"{error.filename or 'system'}: {error.strerror}")
    duration_ms = round((time.perf_counter() - started) * 1000, 1)
    return Check(name, outcome.status, outcome.detail, outcome.remedy, duration_ms)


def local_steps(home: Home) -> list[Step]:
    """What can be checked without a network."""
    return [
        ("home", partial(check_home, home)),
        ("keys", partial(check_keys, home)),
        ("state", partial(check_state, home)),
        ("policy", partial(check_policy, home)),
        ("sandbox", partial(check_sandbox, home)),
        ("codex", partial(check_codex, home)),
        ("ssh", check_ssh),
        ("host daemon", partial(check_daemon, home)),
    ]


def remote_steps(home: Home, records: list[HostRecord]) -> Iterator[Step]:
    """Every relay of these hosts once, then the hosts."""
    relays = {record.relay: record.pin for record in records}
    for url, pin in relays.items():
        yield f"relay {url}", partial(check_relay, url, pin)
    for record in records:
        yield f"host {record.name}", partial(check_host, home, record)


def check_home(home: Home) -> Outcome:
    try:
        status = os.stat(home.path)
    except FileNotFoundError:
        return Outcome(SKIP, f"{home.path} is not there yet; the first use makes it")
    if not stat.S_ISDIR(status.st_mode):
        return Outcome(FAIL, f"{home.path} is not a folder", f"set {ENV_HOME} to a folder")
    if status.st_uid != os.geteuid():
        return Outcome(
            FAIL, f"{home.path} belongs to another user", f"run as its owner, or set {ENV_HOME}"
        )
    if status.st_mode & 0o022:
        return Outcome(FAIL, f"others can write {home.path}", f"chmod 700 {home.path}")
    if not os.access(home.path, os.W_OK | os.X_OK):
        return Outcome(FAIL, f"{home.path} cannot be written", f"chmod 700 {home.path}")
    disk = os.statvfs(home.path)
    free = disk.f_bavail * disk.f_frsize
    if free < LOW_DISK_BYTES:
        return Outcome(
            WARN, f"{free >> 20} MiB are free on the disk of {home.path}", "free some space there"
        )
    return Outcome(OK, home.path)


def check_keys(home: Home) -> Outcome:
    """The identity parses, and no private file can be read by others."""
    open_to_others = [path for path, mode in _private_files(home.path) if mode & 0o077]
    if open_to_others:
        return Outcome(
            FAIL,
            f"others can read {', '.join(open_to_others)}",
            f"chmod 600 {' '.join(open_to_others)}",
        )
    if not os.path.exists(home.identity):
        return Outcome(SKIP, "no identity yet; the first pairing makes it")
    from codexctl.state.identity import load_identity

    load_identity(home)
    return Outcome(OK, home.identity)


def _private_files(folder: str, depth: int = 3) -> Iterator[tuple[str, int]]:
    """Paths and modes of what should be private in a home."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if depth > 1:
                yield from _private_files(entry.path, depth - 1)
        elif entry.name.endswith(PRIVATE_ENDINGS) and not entry.is_symlink():
            try:
                yield entry.path, entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue  # SQLite has just removed a log of its own


def check_state(home: Home) -> Outcome:
    """Each database that is there is whole."""
    import sqlite3

    from codexctl.state.database import describe_sqlite_error

    names = []
    for path in (home.device_db, home.host_db, home.relay_db, home.join("provision.db")):
        if not os.path.exists(path):
            continue
        try:
            db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            try:
                (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
            finally:
                db.close()
        except sqlite3.Error as error:
            raise describe_sqlite_error(error, path) from error
        if answer != "ok":
            return Outcome(FAIL, f"{path} is damaged: {answer}", "restore it from a backup")
        names.append(os.path.basename(path))
    return Outcome(OK, ", ".join(names)) if names else Outcome(SKIP, "no databases yet")


def check_policy(home: Home) -> Outcome:
    from codexctl.host.policy import load_policy

    load_policy(home.policy)
    there = os.path.exists(home.policy)
    return Outcome(OK, home.policy if there else "no policy file; the defaults hold")


def check_sandbox(home: Home) -> Outcome:
    """The sandbox starts here; where this home is no host that is advice, not a failure."""
    if sys.platform != "linux":
        return Outcome(SKIP, f"{sys.platform} can control hosts; commands run on Linux hosts")
    from codexctl.errors import Refused
    from codexctl.host.sandbox import Surroundings
    from codexctl.host.sandbox_probe import Sandbox

    person = os.path.expanduser("~")
    try:
        Sandbox(Surroundings(person, home.path, dict(os.environ)), os.getcwd()).probe()
    except Refused as error:
        is_host = os.path.exists(home.host_db)
        detail = error.message if is_host else f"{error.message} (a host needs it)"
        return Outcome(FAIL if is_host else WARN, detail, error.hint)
    return Outcome(OK, "bubblewrap starts here")


def check_codex(home: Home) -> Outcome:
    """That threads could run here: codex is there, new enough and logged in."""
    import shutil

    if shutil.which("codex") is None:
        return Outcome(
            WARN,
            "codex is not on the PATH; only threads need it, commands do not",
            "npm install -g @openai/codex",
        )
    from codexctl.agent.codex import find_codex
    from codexctl.agent.errors import NoCodex
    from codexctl.agent.login import is_logged_in

    variables = dict(os.environ)
    try:
        codex = find_codex(home, os.environ.get("PATH", ""), variables, "this machine")
    except NoCodex as error:
        return Outcome(WARN, error.message, error.hint.removeprefix("there: "))
    found = f"{codex.path}, {codex.version}"
    logged_in = is_logged_in(codex, variables)
    if logged_in:
        return Outcome(OK, f"{found}, logged in")
    if logged_in is None:
        return Outcome(WARN, f"{found} does not start its app-server", "codex app-server --help")
    return Outcome(WARN, f"{found} is not logged in, so its threads cannot run", "codex login")


def check_ssh() -> Outcome:
    found = _version_of("ssh", "-V")
    if found is None:
        return Outcome(
            WARN,
            "ssh is not on the PATH; hosts of ~/.ssh/config cannot be resolved without it",
            "install the package openssh-client",
        )
    return Outcome(OK, found)


def _version_of(program: str, option: str) -> str | None:
    """`PATH, VERSION` of a program; None where it is missing."""
    import shutil
    import subprocess

    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, option],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CodexctlError(
            f"{path} did not tell its version in {PROGRAM_TIMEOUT_S:.0f} s"
        ) from None
    lines = (done.stdout + done.stderr).splitlines()
    return f"{path}, {lines[0].strip() if lines else 'no version'}"


def check_daemon(home: Home) -> Outcome:
    from codexctl.host.control import NoDaemon, ask

    try:
        status = ask(home, "status")
    except NoDaemon as error:
        return Outcome(SKIP, error.message)
    detail = f"{status.get('name')} runs, pid {status.get('pid')}"
    if not status.get("online"):
        return Outcome(
            FAIL,
            f"{detail}, but is not connected to {status.get('relay')}",
            f"codexctl relay ping {status.get('relay')}",
        )
    return Outcome(OK, f"{detail}, connected to {status.get('relay')}")


def check_relay(url: str, pin: bytes | None) -> Outcome:
    """The relay answers, and its clock agrees with ours."""
    from codexctl.client.http import request

    asked = time.time()
    answer = request("GET", f"{url}/v1/health", pin=pin)
    now = answer.value.get("now")
    if answer.status != 200 or not isinstance(now, int):
        return Outcome(
            FAIL, f"what answers there is no relay (HTTP {answer.status})", "check its address"
        )
    if answer.value.get("status") == "draining":
        return Outcome(WARN, "it is draining: it ends soon and takes no new sessions", "wait")
    # The answer's second may have begun before we asked or ended after.
    skew = max(asked - now - 1, now - time.time(), 0.0)
    if skew > CLOCK_WARN_S:
        return Outcome(
            FAIL if skew > CLOCK_FAIL_S else WARN,
            f"its clock and this machine's differ by {skew:.0f} s",
            "set the clock of the machine that is wrong: timedatectl set-ntp true",
        )
    return Outcome(OK, f"version {answer.value.get('version')}, clocks agree")


def check_host(home: Home, record: HostRecord) -> Outcome:
    """A whole session: relay, host, both keys, the host's own word about its sandbox."""
    from codexctl.client.ask import control
    from codexctl.client.connection import Connection
    from codexctl.client.store import OFFICIAL
    from codexctl.state.identity import load_identity

    if record.kind == OFFICIAL:
        from codexctl.client.executor.connection import ExecutorConnection

        with ExecutorConnection.open(record) as executor:
            found = executor.environment
        return Outcome(OK, f"official executor, codex {found.version}, {found.os}")
    with Connection.open(record, load_identity(home)) as connection:
        status = control(connection, "status")
    detail = f"version {status.get('version')}, {status.get('platform')}"
    left_s = record.token_expires_at - time.time()
    if left_s < TOKEN_WARN_S:
        return Outcome(
            WARN,
            f"{detail}; its relay token ends in {max(left_s, 0) / 86400:.0f} days",
            f"use it once more, or pair again: codexctl pair URL --name {record.name}",
        )
    return Outcome(OK, detail)


def check_alias(name: str) -> Outcome:
    """An alias of ~/.ssh/config: ssh logs in by itself, with the host's key known."""
    import subprocess

    from codexctl.client.ssh_config import config_path

    argv = ["ssh", "-F", config_path(), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", name]
    try:
        done = subprocess.run(
            [*argv, "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(FAIL, f"ssh {name} did not finish in {PROGRAM_TIMEOUT_S:.0f} s")
    if done.returncode == 255:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Outcome(FAIL, lines[-1] if lines else "ssh failed", f"try it: ssh -v {name} true")
    return Outcome(OK, "ssh logs in")
