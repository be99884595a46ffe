"""A machine for tests: the real sshd in a bubblewrap root, born from user data.

It has its own /etc/ssh, /etc/passwd, /home, /run, /var/lib and /usr/local/bin; the rest is this
system, read-only as far as tests go. What cloud-init would do with codexctl's user data is done by
`apply` below (the keys of the modules that codexctl uses) before and after sshd is up, with its
result file at the end. A user has uid 0, since there is no sudo here, unless `uid` says otherwise.
Needs root and bwrap.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
BOOT = """
/usr/sbin/sshd -D -e -f /etc/ssh/sshd_config 2>>/var/lib/sshd.log &
sshd=$!
sleep "$BOOT_DELAY"
status=ok
sh -e /var/lib/runcmd >/var/lib/runcmd.log 2>&1 || status=failed
mkdir -p /run/cloud-init
if [ $status = ok ]; then errors='[]'; else errors='["runcmd failed"]'; fi
echo "{\\"v1\\": {\\"datasource\\": \\"test\\", \\"errors\\": $errors}}" >/run/cloud-init/result.new
mv /run/cloud-init/result.new /run/cloud-init/result.json
wait $sshd
"""
CODEX = "#!/bin/sh\necho codex-cli 0.0.0-test\n"


def unavailable() -> str:
    """Why there can be no machine here; "" where there can."""
    if os.geteuid() != 0:
        return "needs root"
    if SSHD is None or shutil.which("bwrap") is None:
        return "needs sshd and bwrap"
    return ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def boot(
    folder: Path,
    user_data: str,
    *,
    ignore: bool = False,
    delay_s: float = 0,
    address: str = "127.0.0.1",
    port: int = 0,
) -> tuple[int, int]:
    """Start it; (port, pid). `ignore` boots as cloud-init does with user data that it ignores."""
    port = port or free_port()
    for name in ("ssh", "home", "run/sshd", "run/cloud-init", "var/codexctl", "bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "codex").write_text(CODEX)
    (folder / "bin" / "codex").chmod(0o755)
    value = {} if ignore else yaml.safe_load(user_data)
    apply(folder, value)
    # A folder that an ordinary user of the machine could not reach by its own path.
    shown = [user["libraries"] for user in value.get("users", []) if "libraries" in user]
    libraries = ["--ro-bind", shown[0], "/home/libraries"] if shown else []
    passwords = "yes" if any(user.get("passwd") for user in value.get("users", [])) else "no"
    (folder / "ssh" / "sshd_config").write_text(
        f"ListenAddress {address}\nPort {port}\nHostKey /etc/ssh/ssh_host_ed25519_key\n"
        f"PidFile /run/sshd.pid\nPermitRootLogin yes\nPasswordAuthentication {passwords}\n"
        "KbdInteractiveAuthentication no\nStrictModes no\nMaxAuthTries 3\n"
        "UsePAM no\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
    )
    with open(folder / "machine.log", "ab") as log:
        process = subprocess.Popen(
            [
                *("bwrap", "--dev-bind", "/", "/", "--perms", "1777", "--tmpfs", "/tmp"),
                *("--bind", str(folder / "ssh"), "/etc/ssh"),
                *("--bind", str(folder / "home"), "/home"),
                *("--bind", str(folder / "run"), "/run"),
                *("--bind", str(folder / "var"), "/var/lib"),
                *("--bind", str(folder / "bin"), "/usr/local/bin"),
                *("--bind", str(folder / "passwd"), "/etc/passwd"),
                *libraries,
                # The tests' own environment, where that lies below /tmp.
                *(("--ro-bind", sys.prefix, sys.prefix) if sys.prefix.startswith("/tmp/") else ()),
                *("--unshare-pid", "--proc", "/proc", "--setenv", "BOOT_DELAY", str(delay_s)),
                *("sh", "-c", BOOT),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
        )
    # It outlives the process that boots it: nobody waits for it but `halt`.
    process.returncode = 0
    (folder / "pid").write_text(str(process.pid))
    return port, process.pid


def apply(folder: Path, value: dict[str, Any]) -> None:
    """What cloud-init's modules of these names do."""
    keys = value.get("ssh_keys", {})
    private = folder / "ssh" / "ssh_host_ed25519_key"
    if keys:
        private.write_text(keys["ed25519_private"])
        private.chmod(0o600)
        (folder / "ssh" / "ssh_host_ed25519_key.pub").write_text(keys["ed25519_public"] + "\n")
    elif not private.exists():
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", private], check=True)
    lines = ["root:x:0:0:root:/root:/bin/sh", "sshd:*:105:65534::/run/sshd:/usr/sbin/nologin"]
    for user in value.get("users", []):
        home = folder / "home" / user["name"]
        (home / ".ssh").mkdir(parents=True, exist_ok=True)
        authorized = "\n".join(user["ssh_authorized_keys"]) + "\n"
        (home / ".ssh" / "authorized_keys").write_text(authorized)
        uid = user.get("uid", 0)
        if uid:
            for path in (home, *home.rglob("*")):
                os.lchown(path, uid, uid)
        entry = f"{user['name']}:{user.get('passwd', '*')}:{uid}:{uid}"
        lines.append(f"{entry}::/home/{user['name']}:{user['shell']}")
    (folder / "passwd").write_text("\n".join(lines) + "\n")
    for file in value.get("write_files", []):
        if not file["path"].startswith("/var/lib/"):
            continue
        path = folder / "var" / file["path"].removeprefix("/var/lib/")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = file["content"].encode()
        path.write_bytes(base64.b64decode(content) if file.get("encoding") == "b64" else content)
        path.chmod(int(file.get("permissions", "0644"), 8))
    commands = [shlex.join(c) for c in value.get("runcmd", []) if "systemctl" not in c[-1]]
    (folder / "var" / "runcmd").write_text("\n".join(commands) + "\n")


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run" / "cloud-init" / "result.json").read_text()))


def halt_all(folder: Path) -> None:
    """Power off every machine that was booted below the folder."""
    for file in folder.glob("**/pid"):
        halt(int(file.read_text()))


def halt(pid: int) -> None:
    """Power it off, bwrap and what runs in it. It may have been started by another process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def await_port(port: int, timeout_s: float = 10.0) -> None:
    """Until sshd answers."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, "sshd does not answer"
            time.sleep(0.02)
