"""What codexctl does on a machine over the pinned connection: a new host key, its own wheel.

Everything it puts there lies in one folder of the user's, `~/.local/share/codexctl`, plus links
that `uninstall` in that folder removes; so an adopted machine is left as it was found.
"""

from __future__ import annotations

import time
from dataclasses import replace

from codexctl.errors import CodexctlError, ConnectionFailed
from codexctl.provision.codex import install_script
from codexctl.provision.journal import Workspace
from codexctl.provision.keys import WorkspaceFiles, public_key_of_line
from codexctl.provision.readiness import NotReady, Teller
from codexctl.provision.remote import Link
from codexctl.provision.wheel import own_wheel

INSTALL_TIMEOUT_S = 600.0
RECONNECT_TIMEOUT_S = 30.0
RECONNECT_EVERY_S = 0.2
FOLDER = "$HOME/.local/share/codexctl"

AS_ROOT = 'as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }\n'
NEW_KEY = (
    AS_ROOT
    + """
set -eu
new=/etc/ssh/codexctl_next_host_key
[ -e "$new" ] || as_root ssh-keygen -q -t ed25519 -N '' -C '' -f "$new"
as_root cat "$new.pub"
"""
)
USE_KEY = (
    AS_ROOT
    + """
set -eu
new=/etc/ssh/codexctl_next_host_key
as_root mv "$new.pub" /etc/ssh/ssh_host_ed25519_key.pub
as_root mv "$new" /etc/ssh/ssh_host_ed25519_key
if [ -d /run/systemd/system ]; then
  as_root systemctl reload ssh 2>/dev/null || as_root systemctl reload sshd
else
  as_root kill -HUP "$(cat /run/sshd.pid)"
fi
"""
)
UNINSTALL = """#!/bin/sh
# Removes what codexctl put on this machine for one workspace.
folder=$(cd "$(dirname "$0")" && pwd)
if [ -d "$folder/home" ]; then
  CODEXCTL_HOME=$folder/home "$folder/venv/bin/codexctl" host install --uninstall >/dev/null 2>&1
  [ ! -r "$folder/home/host.pid" ] || kill "$(cat "$folder/home/host.pid")" 2>/dev/null
  rmdir "$HOME/workspace" 2>/dev/null
fi
for link in "$HOME/.local/bin/codexctl" "$HOME/.local/bin/codex" /usr/local/bin/codexctl; do
  case "$(readlink "$link" 2>/dev/null)" in "$folder"/*) rm -f "$link" 2>/dev/null ;; esac
done
rm -f "$HOME/.config/fish/conf.d/codexctl.fish"
for file in .profile .bash_profile .bash_login .zprofile .cshrc .tcshrc; do
  file=$HOME/$file
  grep -qs " # by codexctl$" "$file" || continue
  # Written through, so that mode, owner and a symlink stay what they are.
  grep -v " # by codexctl$" "$file" >"$folder/rest" || true
  cat "$folder/rest" >"$file"
  [ -s "$file" ] || rm -f "$file"
done
rm -rf "$folder"
"""
# Each shell's own way; what is written ends with the mark that the uninstaller looks for, or is a
# file of codexctl's own.
ON_PATH = """
shell=$(getent passwd "$(id -un)" 2>/dev/null | cut -d: -f7)
[ -x "$shell" ] || shell=/bin/sh
bin=$HOME/.local/bin
found() {
  case "$shell" in
    */csh|*/tcsh) "$shell" -c 'which codex' ;;
    *) "$shell" -lc 'command -v codex' ;;
  esac </dev/null >/dev/null 2>&1
}
append() {
  [ ! -s "$1" ] || [ -z "$(tail -c1 "$1")" ] || echo >>"$1"
  printf '%s # by codexctl\\n' "$2" >>"$1"
}
if ! found; then
  case "$shell" in
    */fish)
      mkdir -p "$HOME/.config/fish/conf.d"
      echo "set -gx PATH '$bin' \\$PATH" >"$HOME/.config/fish/conf.d/codexctl.fish" ;;
    */csh|*/tcsh)
      file=$HOME/.cshrc; [ ! -e "$HOME/.tcshrc" ] || file=$HOME/.tcshrc
      append "$file" "set path = ( '$bin' \\$path )" ;;
    */zsh) append "$HOME/.zprofile" "PATH='$bin':\\$PATH" ;;
    *)
      file=$HOME/.profile
      for own in .bash_login .bash_profile; do
        case "$shell" in */bash) [ ! -e "$HOME/$own" ] || file=$HOME/$own ;; esac
      done
      append "$file" "PATH='$bin':\\$PATH" ;;
  esac
fi
"""
PUT_WHEEL = f"""
set -eu
umask 077
mkdir -p "{FOLDER}"
cat >"{FOLDER}/$NAME"
"""
INSTALL = (
    AS_ROOT
    + f"""
set -eu
folder="{FOLDER}"
python=$(command -v python3) || {{ echo "there is no python3" >&2; exit 1; }}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {{
  echo "python3 is older than 3.11" >&2; exit 1; }}
[ -x "$folder/venv/bin/python" ] || "$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \\
  --force-reinstall --no-deps "$folder/$NAME"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$folder/$NAME"
mkdir -p "$HOME/.local/bin"
ln -sfn "$folder/venv/bin/codexctl" "$HOME/.local/bin/codexctl"
as_root ln -sfn "$folder/venv/bin/codexctl" /usr/local/bin/codexctl 2>/dev/null || true
"$folder/venv/bin/codexctl" --version
"""
)
DROP_SUDO = (
    AS_ROOT
    + """
set -eu
as_root sh -c 'rm -f /etc/sudoers.d/90-cloud-init-users'
! sudo -n true 2>/dev/null
"""
)


def rotate_host_key(link: Link, files: WorkspaceFiles) -> None:
    """Have the machine make a host key that was never anywhere else, and trust that alone.

    A crash in between leaves both trusted, and the next run makes another. The new connection must
    show the new key before the first one is forgotten.
    """
    line = link.check(NEW_KEY, what="making a new host key")
    new = public_key_of_line(line)
    if not new.startswith("ssh-ed25519 "):
        raise CodexctlError("the machine made no ed25519 host key")
    files.pin(list(dict.fromkeys([*files.pinned(), new])))
    link.check(USE_KEY, what="using the new host key")
    link.drop()
    link.target = replace(link.target, host_keys=tuple(files.pinned()))
    _await_key(link, new)
    files.pin([new])
    files.drop_first_host_key()


def _await_key(link: Link, new: str) -> None:
    """Connect until sshd, which restarts on its own time, shows the new key."""
    end = time.monotonic() + RECONNECT_TIMEOUT_S
    while True:
        try:
            if link.host_key() == new:
                return
        except ConnectionFailed as error:
            if error.code == "host-key" or time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise CodexctlError(
                "the machine still shows its first host key after the rotation",
                hint="is its sshd configured with another HostKey?",
            )
        link.drop()
        time.sleep(RECONNECT_EVERY_S)


def install_codex(link: Link, workspace: Workspace, tell: Teller) -> None:
    """The official codex for the user of an adopted machine, as its plan has said.

    Found by the login shell, whichever it is: `~/.local/bin` is put on its PATH where it is not.
    """
    tell("codex", "waiting", "installing it")
    _send_uninstaller(link)
    script = install_script(f"{FOLDER}/codex", "$HOME/.local/bin")
    result = link.run(f"(\n{script}) || exit 1\n{ON_PATH}", timeout_s=INSTALL_TIMEOUT_S)
    if result.status != 0:
        tell("codex", "failed", result.reason)
        raise NotReady("codex", result.reason, workspace.name)


def _send_uninstaller(link: Link) -> None:
    link.check(
        f'mkdir -p "{FOLDER}" && cat >"{FOLDER}/uninstall" && chmod 755 "{FOLDER}/uninstall"',
        what="sending the uninstaller",
        data=UNINSTALL.encode(),
    )


def install_codexctl(link: Link, workspace: Workspace, tell: Teller) -> None:
    """Send this codexctl as a wheel and install it for the workspace's user."""
    name, wheel = own_wheel()
    tell("codexctl", "waiting", name)
    lead = f"NAME={name}\n"
    link.check(lead + PUT_WHEEL, what="sending codexctl", data=wheel)
    _send_uninstaller(link)
    result = link.run(lead + INSTALL, timeout_s=INSTALL_TIMEOUT_S)
    if result.status != 0:
        tell("codexctl", "failed", result.reason)
        raise NotReady("codexctl", result.reason, workspace.name)
    tell("codexctl", "ok", result.text.splitlines()[-1] if result.text else "")


def drop_sudo(link: Link) -> None:
    """Take the right to become root away again, where the person wanted none."""
    link.check(DROP_SUDO, what="taking sudo away")
