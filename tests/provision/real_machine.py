"""A machine with the real cloud-init: its own network namespace, process tree and root.

The root is a debootstrap of Debian with cloud-init and sshd, made once (70 s) and kept in
~/.cache/codexctl-machines (CODEXCTL_TEST_ROOTS), with an overlay over it for each machine. The user
data comes to cloud-init as a NoCloud seed; its stages run in the order in which a boot runs them,
sshd after the second. Needs root and the network once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
from pathlib import Path

from tests.provision.machine import halt

ROOTS = Path(os.environ.get("CODEXCTL_TEST_ROOTS", "~/.cache/codexctl-machines")).expanduser()
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    "cloud-init,openssh-server,sudo,python3-cffi-backend,iproute2,ca-certificates,curl,python3-venv"
)
MAKE_TIMEOUT_S = 600
BOOT = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /run/sshd
cloud-init init --local
cloud-init init
/usr/sbin/sshd
cloud-init modules --mode=config
cloud-init modules --mode=final
exec sleep infinity
"""
START = """
set -e
mount --make-rprivate /
cd "$FOLDER"
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=upper,workdir=work" root
mount -t proc proc "$FOLDER/root/proc"
mount -t tmpfs tmpfs "$FOLDER/root/run"
mount --rbind /dev "$FOLDER/root/dev"
hostname box
exec chroot "$FOLDER/root" /bin/sh /boot.sh
"""


def unavailable(release: str) -> str:
    """Why there can be none; "" where there can. Makes the root when it is not there yet."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "unshare", "debootstrap"):
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            return f"needs {program}"
    return _make_root(release)


def _make_root(release: str) -> str:
    ROOTS.mkdir(parents=True, exist_ok=True)
    with open(ROOTS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (ROOTS / release).is_dir():
            return ""
        unfinished = ROOTS / f"{release}.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        done = subprocess.run(
            [
                "debootstrap",
                "--variant=minbase",
                f"--include={PACKAGES}",
                release,
                unfinished,
                MIRROR,
            ],
            capture_output=True,
            timeout=MAKE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            return f"debootstrap of {release} failed: {done.stdout.decode()[-200:].strip()}"
        unfinished.rename(ROOTS / release)
    return ""


def boot(folder: Path, user_data: str, release: str) -> tuple[str, int]:
    """Start one; (address, pid)."""
    seed = folder / "upper" / "var" / "lib" / "cloud" / "seed" / "nocloud"
    config = folder / "upper" / "etc" / "cloud" / "cloud.cfg.d"
    for path in (seed, config, folder / "work", folder / "root"):
        path.mkdir(parents=True)
    (seed / "user-data").write_text(user_data)
    (seed / "meta-data").write_text(f"instance-id: {folder.name}\nlocal-hostname: box\n")
    (config / "99-test.cfg").write_text(
        "datasource_list: [NoCloud]\nnetwork: {config: disabled}\nlocale: false\n"
    )
    (folder / "upper" / "boot.sh").write_text(BOOT)
    space, address = _network()
    (folder / "netns").write_text(space)
    with open(folder / "machine.log", "ab") as log:
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", space),
                *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"),
                *("sh", "-c", START),
            ],
            env={
                "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
                "BASE": str(ROOTS / release),
                "FOLDER": str(folder),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # It outlives the process that boots it: nobody waits for it but `halt`.
    process.returncode = 0
    (folder / "pid").write_text(str(process.pid))
    return address, process.pid


def _network() -> tuple[str, str]:
    """A namespace with one end of a wire, whose other end is here; (name, address in it)."""
    for _ in range(20):
        number = secrets.randbelow(250) + 1
        space, wire = f"cxm{number}", f"cxm{number}"
        try:
            _ip("netns", "add", space)
        except subprocess.CalledProcessError:
            continue
        _ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("address", "add", f"10.213.{number}.1/24", "dev", wire)
        _ip("link", "set", wire, "up")
        _ip("-n", space, "address", "add", f"10.213.{number}.2/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        return space, f"10.213.{number}.2"
    raise AssertionError("no network namespace is free")


def _ip(*words: str) -> None:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    subprocess.run(["ip", *words], check=True, capture_output=True, env={"PATH": path})


def halt_all(folder: Path) -> None:
    """Power off every machine below the folder, and take its wire away."""
    for file in folder.glob("**/netns"):
        halt(int((file.parent / "pid").read_text()))
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", file.read_text())
        file.unlink()
