"""Is the machine ready? Truthful stages, each with the time since the run began.

    port        something listens at the address
    host key    it shows the key that was made here, and no other
    login       the workspace's user gets in with the workspace's key
    cloud-init  it has finished, and its own result holds no error
    codex       the official codex is on the login shell's PATH

sshd counts connections that do not log in and shuts a client out (OpenSSH 9.8 and later: seconds
for each, refused from 15 s on). So a refused port is tried often, which sshd never sees; a
connection is made to log in, at once when the port opens; a refused login backs off; and waiting
for cloud-init happens on the one connection that is open, on the machine's side.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from codexctl.errors import CodexctlError, ConnectionFailed
from codexctl.provision.remote import Link, LoginRefused

Mark = Literal["waiting", "ok", "skipped", "failed"]

PORT_EVERY_S = 0.25
PORT_TRY_S = 2.0
LOGIN_WAITS_S = (1.0, 2.0, 5.0, 10.0, 15.0)
READY_TIMEOUT_S = 900.0
POLL_ON_MACHINE_S = 20

CLOUD_INIT = f"""
[ -d /run/cloud-init ] || [ -d /var/lib/cloud ] || {{ echo none; exit 0; }}
n=0
until [ -e /run/cloud-init/result.json ] || [ $n -ge {POLL_ON_MACHINE_S * 5} ]; do
  sleep 0.2; n=$((n + 1))
done
if [ ! -e /run/cloud-init/result.json ]; then
  echo waiting; cat /var/lib/codexctl/step 2>/dev/null; exit 0
fi
echo result
cat /run/cloud-init/result.json
echo
cat /var/lib/codexctl/failed 2>/dev/null
exit 0
"""
STEP_LOG = (
    'step=$(cut -d" " -f1 /var/lib/codexctl/failed) && tail -c 4000 "/var/lib/codexctl/$step.log"'
)
ON_PATH = """
shell=$(getent passwd "$(id -un)" 2>/dev/null | cut -d: -f7)
[ -x "$shell" ] || shell=/bin/sh
case "$shell" in
  */csh|*/tcsh) "$shell" -c 'which codex && codex --version' ;;
  *) "$shell" -lc 'command -v codex && codex --version' ;;
esac </dev/null
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of readiness, as shown and as one JSON line."""

    stage: str
    state: Mark
    elapsed_s: float
    detail: str = ""


Tell = Callable[[Stage], None]


class Teller:
    """Gives each stage its time and hands it on."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._began = time.monotonic()

    def __call__(self, stage: str, state: Mark, detail: str = "") -> None:
        self._tell(Stage(stage, state, round(time.monotonic() - self._began, 3), detail))


class NotReady(CodexctlError):
    """A stage failed; the machine exists and bills."""

    code = "not-ready"

    def __init__(self, stage: str, seen: str, name: str) -> None:
        super().__init__(
            f"{name} is not ready, stage {stage}: {seen}",
            hint=f"codexctl workspace logs {name} shows more; then codexctl provision "
            f"--resume {name}, or codexctl workspace destroy {name}",
        )
        self.stage = stage


def await_login(link: Link, name: str, tell: Teller, *, timeout_s: float) -> None:
    """Wait for the port and log in. A wrong host key ends it at once; NotReady when time is up."""
    end = time.monotonic() + timeout_s
    if not link.target.proxy_jump:
        _await_port(link, name, tell, end)
    else:
        tell("port", "skipped", "behind a jump host")
    tell("host key", "waiting")
    tries, proven = 0, False
    while True:
        wait = LOGIN_WAITS_S[min(tries, len(LOGIN_WAITS_S) - 1)]
        try:
            link.connect()
            break
        except LoginRefused as error:
            if not proven:
                proven = True
                tell("host key", "ok")
            tell("login", "waiting", error.message)
            last: CodexctlError = error
        except ConnectionFailed as error:
            if error.code == "host-key":
                tell("host key", "failed", error.message)
                raise
            # It listens and hangs up: sshd is starting or stopping. Nothing was counted against us.
            last, wait = error, min(wait, 1.0)
        if time.monotonic() + wait > end:
            tell("login", "failed", last.message)
            raise NotReady("login", last.message, name)
        tries += 1
        time.sleep(wait)
    if not proven:
        tell("host key", "ok")
    tell("login", "ok", link.target.user)


def _await_port(link: Link, name: str, tell: Teller, end: float) -> None:
    target = link.target
    tell("port", "waiting", f"{target.address} port {target.port}")
    while True:
        began = time.monotonic()
        try:
            socket.create_connection((target.address, target.port), timeout=PORT_TRY_S).close()
            tell("port", "ok", f"{target.address} port {target.port}")
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > end:
            tell("port", "failed", reason)
            raise NotReady("port", f"{target.address} port {target.port}: {reason}", name)
        time.sleep(max(0.0, PORT_EVERY_S - (time.monotonic() - began)))


def await_cloud_init(link: Link, name: str, tell: Teller, *, timeout_s: float) -> None:
    """Wait until cloud-init has written its result, and read it. Survives lost connections."""
    end = time.monotonic() + timeout_s
    tell("cloud-init", "waiting")
    while True:
        try:
            said = link.run(CLOUD_INIT, timeout_s=POLL_ON_MACHINE_S + 30).text
        except ConnectionFailed as error:
            if error.code in ("host-key",) or time.monotonic() > end:
                tell("cloud-init", "failed", error.message)
                raise
            time.sleep(1.0)
            continue
        kind, _, rest = said.partition("\n")
        if kind == "none":
            tell("cloud-init", "skipped", "the machine has none")
            return
        if kind == "result":
            problem = cloud_init_problem(rest)
            if problem is None:
                tell("cloud-init", "ok")
                return
            tell("cloud-init", "failed", problem)
            raise NotReady("cloud-init", problem + _step_output(link), name)
        if time.monotonic() > end:
            step = rest.strip() or "unknown"
            tell("cloud-init", "failed", f"still running, step {step}")
            raise NotReady("cloud-init", f"it is still running (step {step})", name)
        tell("cloud-init", "waiting", rest.strip())


def cloud_init_problem(text: str) -> str | None:
    """None for a good result; else one clause. `text`: result.json, then the failed step's line."""
    lines = text.strip().splitlines()
    failed = lines[-1].split() if lines and not lines[-1].rstrip().endswith("}") else []
    body = "\n".join(lines[:-1] if failed else lines)
    if failed:
        status = failed[1] if len(failed) > 1 else "?"
        return f"the step {failed[0]} ended with status {status}"
    try:
        result: Any = json.loads(body)
        errors = result["v1"]["errors"]
    except (ValueError, KeyError, TypeError):
        return "its result does not parse"
    if errors:
        return f"it reports: {str(errors[0])[:200]}"
    return None


def _step_output(link: Link) -> str:
    try:
        said = link.run(STEP_LOG).text
    except CodexctlError:
        return ""
    return f"; it said last: {said.splitlines()[-1][:200]}" if said else ""


def check_codex(link: Link, name: str, tell: Teller) -> None:
    """The official codex on the PATH of the login shell; NotReady with what was seen."""
    result = link.run(ON_PATH)
    if result.status != 0:
        seen = "codex is not on the login shell's PATH"
        tell("codex", "failed", seen)
        raise NotReady("codex", seen, name)
    tell("codex", "ok", " ".join(result.text.split("\n")[-2:]))
