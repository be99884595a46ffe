"""The ssh provider: adopts a machine that exists, and never destroys anything of it.

`create` puts two things there: a line in ~/.ssh/authorized_keys and a file
~/.codexctl-workspaces/ID that holds the tags; `destroy` takes them away again, with what codexctl
installed for its last workspace. The machine itself is the record, so a lost journal loses nothing.

The person's own ssh makes every connection: its aliases, ProxyJump, agent, password prompts and
known_hosts count. One connection is shared by the calls of an account (ControlMaster), so that a
password is asked for once. A region is a destination. Scripts travel on stdin to `sh`, whatever the
login shell is; neither root nor sudo is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from codexctl.hookspecs import hookimpl
from codexctl.provision import errors
from codexctl.provision.model import (
    CALL_TIMEOUT_S,
    FREE,
    Account,
    Capabilities,
    Image,
    Machine,
    Order,
    Plan,
    Provider,
    Ref,
    Region,
    Resource,
    SecretStore,
    Size,
    State,
    Tags,
    is_workspace_id,
    require_text,
    resource_name,
)

if TYPE_CHECKING:
    import click

PASSWORD_TIMEOUT_S = 120.0
"""With a terminal, where the person may have to type."""
SHARE_S = 60
BEGIN = "codexctl-begin"
CONFIG_ENV = "CODEXCTL_SSH_CONFIG"
_DESTINATION = re.compile(r"(?:[A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9._:][A-Za-z0-9._:-]*\Z")

LOOK = """
shell=$(getent passwd "$(id -un)" 2>/dev/null | cut -d: -f7)
[ -x "$shell" ] || shell=/bin/sh
for name in codex codexctl; do
  case "$shell" in
    */csh|*/tcsh) "$shell" -c "which $name" ;;
    *) "$shell" -lc "command -v $name" ;;
  esac </dev/null >/dev/null 2>&1 && echo "$name yes" || echo "$name no"
done
for key in /etc/ssh/ssh_host_*_key.pub; do
  [ -r "$key" ] && echo "key $(cut -d' ' -f1,2 "$key")"
done
"""
CREATE = """
set -eu
umask 077
mkdir -p "$HOME/.ssh" "$HOME/.codexctl-workspaces"
file=$HOME/.ssh/authorized_keys
touch "$file"
[ -z "$(tail -c1 "$file")" ] || echo >>"$file"
grep -qxF "$KEY" "$file" || printf '%s\\n' "$KEY" >>"$file"
printf '%s\\n' "$TAGS" >"$HOME/.codexctl-workspaces/$ID.new"
mv "$HOME/.codexctl-workspaces/$ID.new" "$HOME/.codexctl-workspaces/$ID"
"""
LIST = """
for file in "$HOME"/.codexctl-workspaces/*; do
  [ -f "$file" ] && echo "machine ${file##*/} $(cat "$file")"
done
[ ! -r "$HOME/.ssh/authorized_keys" ] ||
  sed -n 's/.* codexctl-\\([0-9a-f]\\{32\\}\\)$/key \\1/p' "$HOME/.ssh/authorized_keys"
"""
DESTROY = """
set -eu
umask 077
file=$HOME/.ssh/authorized_keys
folder=$HOME/.codexctl-workspaces
if [ -f "$file" ] && grep -q " codexctl-$ID\\$" "$file"; then
  # Written through, so that mode, owner and a symlink stay what they are.
  mkdir -p "$folder"
  rest=$folder/$ID.rest
  grep -v " codexctl-$ID\\$" "$file" >"$rest" || true
  cat "$rest" >"$file"
  rm -f "$rest"
fi
rm -f "$folder/$ID" "$folder/$ID.new"
if rmdir "$folder" 2>/dev/null; then
  uninstall=$HOME/.local/share/codexctl/uninstall
  [ ! -x "$uninstall" ] || "$uninstall"
fi
"""
SET_TAGS = """
set -eu
[ -f "$HOME/.codexctl-workspaces/$ID" ] || exit 0
printf '%s\\n' "$TAGS" >"$HOME/.codexctl-workspaces/$ID.new"
mv "$HOME/.codexctl-workspaces/$ID.new" "$HOME/.codexctl-workspaces/$ID"
"""


class SshAccount(Account):
    """The person's own ssh, as an account that costs nothing."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def account_id(self) -> str:
        if shutil.which("ssh") is None:
            raise errors.ProviderError("there is no ssh here", hint="install openssh-client")
        return "ssh"

    def regions(self) -> Sequence[Region]:
        from codexctl.client.ssh_config import alias_names

        return [Region(name) for name in alias_names()]

    def sizes(self, region: str) -> Sequence[Size]:
        return []

    def images(self, region: str) -> Sequence[Image]:
        return []

    def plan(self, options: Mapping[str, Any]) -> Plan:
        destination = require_text(options, "destination")
        if options.get("user"):
            destination = f"{options['user']}@{destination.rpartition('@')[2]}"
        user = _settings(destination)["user"]
        found = self._look(destination)
        lines = [f"{destination} is reached as {user}, its host key is known"]
        if found["codex"] == ["no"]:
            lines.append(
                "codex is missing there and will be installed for this user, with ~/.local/bin on "
                "the login shell's PATH, unless --bare"
            )
        if found["codexctl"] == ["no"]:
            lines.append("codexctl will be installed in its ~/.local/share/codexctl, unless --bare")
        extra = {"codex": "missing"} if found["codex"] == ["no"] else {}
        return Plan(
            region=destination,
            size="",
            image="",
            price=FREE,
            user=user,
            lines=tuple(lines),
            extra=extra,
        )

    def create(self, order: Order) -> Machine:
        values = {"ID": order.ref.workspace_id, "KEY": order.public_key, "TAGS": _text(order.tags)}
        self._run(order.ref.region, CREATE, **values)
        return self._machine(order.ref)

    def describe(self, ref: Ref) -> Machine | None:
        found = {r.tags.workspace_id for r in self._list(ref.region) if r.tags is not None}
        return self._machine(ref) if ref.workspace_id in found else None

    def list_owned(self, regions: Collection[str]) -> Sequence[Resource]:
        return [resource for region in sorted(regions) for resource in self._list(region)]

    def destroy(self, ref: Ref) -> None:
        assert is_workspace_id(ref.workspace_id)
        self._run(ref.region, DESTROY, ID=ref.workspace_id)

    def set_expiry(self, ref: Ref, tags: Tags) -> None:
        self._run(ref.region, SET_TAGS, ID=ref.workspace_id, TAGS=_text(tags))

    def close(self) -> None:
        for name in os.listdir(self._folder) if os.path.isdir(self._folder) else []:
            path = os.path.join(self._folder, name)
            subprocess.run(
                ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "codexctl"],
                check=False,
                capture_output=True,
                timeout=CALL_TIMEOUT_S,
            )
        shutil.rmtree(self._folder, ignore_errors=True)

    def _look(self, destination: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"codex": [], "codexctl": [], "key": []}
        for line in self._run(destination, LOOK):
            kind, _, value = line.partition(" ")
            if kind in found:
                found[kind].append(value)
        return found

    def _machine(self, ref: Ref) -> Machine:
        settings = _settings(ref.region)
        found = self._look(ref.region)
        jump = settings.get("proxyjump", "none")
        return Machine(
            ref=replace(ref, machine_id=ref.region),
            state="running",
            address=settings["hostname"],
            port=int(settings.get("port", "22")),
            user=settings["user"],
            proxy_jump=None if jump == "none" else jump,
            host_keys=tuple(_known_keys(settings) or found["key"]),
        )

    def _list(self, destination: str) -> list[Resource]:
        resources: dict[str, Resource] = {}
        for line in self._run(destination, LIST):
            kind, _, rest = line.partition(" ")
            workspace_id, _, text = rest.partition(" ")
            if not is_workspace_id(workspace_id):
                continue
            tags = Tags.parse_flat(text.split()) if kind == "machine" else None
            state: State | None = "running" if kind == "machine" else None
            if kind == "key" and workspace_id in resources:
                continue
            resources[workspace_id] = Resource(
                kind=kind,
                resource_id=destination,
                name=resource_name(workspace_id),
                region=destination,
                tags=tags or Tags(workspace_id, "", None),
                bills=False,
                state=state,
            )
        return list(resources.values())

    def _run(self, destination: str, script: str, **values: str) -> list[str]:
        """The lines that a script wrote on the machine; errors say what ssh said."""
        from shlex import quote

        lead = "".join(f"{name}={quote(value)}\n" for name, value in values.items())
        terminal = sys.stdin.isatty()
        # A program that asks for passwords (SSH_ASKPASS) does in place of a terminal.
        asks = terminal or bool(os.environ.get("SSH_ASKPASS"))
        command = [
            *("ssh", *_config(), "-T", "-o", "ControlMaster=auto"),
            *("-o", f"ControlPath={self._folder}/%C", "-o", f"ControlPersist={SHARE_S}"),
            *("-o", f"StrictHostKeyChecking={'ask' if terminal else 'yes'}"),
            *("-o", f"BatchMode={'no' if asks else 'yes'}", "-o", "ConnectTimeout=15"),
            *("--", destination, "exec sh -s"),
        ]
        try:
            done = subprocess.run(
                command,
                input=f"{lead}echo {BEGIN}\n{script}".encode(),
                check=False,
                capture_output=True,
                timeout=PASSWORD_TIMEOUT_S if asks else CALL_TIMEOUT_S,
                env=os.environ if terminal else {"SSH_ASKPASS_REQUIRE": "force"} | os.environ,
            )
        except subprocess.TimeoutExpired as error:
            raise errors.OutcomeUnknown(f"ssh to {destination} did not end in time") from error
        out = done.stdout.decode(errors="replace")
        said = done.stderr.decode(errors="replace").strip()
        # What the login shell's own files print comes before.
        _, began, body = out.partition(f"{BEGIN}\n")
        if done.returncode == 0 and began:
            return body.splitlines()
        raise _mapped(destination, said, begun=bool(began), status=done.returncode)


def _mapped(destination: str, said: str, *, begun: bool, status: int) -> errors.ProviderError:
    last = said.splitlines()[-1][:200] if said else f"status {status}"
    if begun and status != 255:
        return errors.ProviderError(
            f"a step on {destination} failed: {last}", hint=f"look there: ssh {destination}"
        )
    if begun:
        return errors.OutcomeUnknown(f"the connection to {destination} was lost: {last}")
    if "HOST IDENTIFICATION HAS CHANGED" in said:
        return errors.ProviderError(
            f"the host key of {destination} has changed; nothing was sent",
            hint=f"find out why before you correct known_hosts: ssh {destination}",
        )
    if "Host key verification failed" in said:
        return errors.ProviderError(
            f"the host key of {destination} is not known yet",
            hint=f"connect once and compare its fingerprint: ssh {destination}",
        )
    if "Permission denied" in said or "Too many authentication failures" in said:
        return errors.CredentialsWrong(
            f"{destination} refuses the login: {last}",
            hint=f"make this work first: ssh {destination}",
        )
    return errors.ProviderUnreachable(
        f"cannot reach {destination}: {last}", hint=f"make this work first: ssh {destination}"
    )


def _config() -> list[str]:
    path = os.environ.get(CONFIG_ENV)
    return ["-F", path] if path else []


def _settings(destination: str) -> dict[str, str]:
    """What `ssh -G` says of a destination, the first of each key."""
    if not _DESTINATION.match(destination):
        raise errors.UnknownChoice("destination", destination, [])
    done = subprocess.run(
        ["ssh", *_config(), "-G", "--", destination],
        check=False,
        capture_output=True,
        timeout=CALL_TIMEOUT_S,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise errors.ProviderError(f"ssh does not understand {destination}: {said[:200]}")
    settings: dict[str, str] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        key, _, value = line.partition(" ")
        settings.setdefault(key, value)
    if settings.get("proxycommand", "none") != "none":
        raise errors.ProviderError(
            f"{destination} is reached by a ProxyCommand, which a workspace cannot use",
            hint="write it as a ProxyJump",
        )
    return settings


def _known_keys(settings: Mapping[str, str]) -> list[str]:
    """The keys that the person's known_hosts hold for it, which the connection was checked by."""
    name, port = settings["hostname"], settings.get("port", "22")
    name = settings.get("hostkeyalias") or (name if port == "22" else f"[{name}]:{port}")
    files = f"{settings.get('userknownhostsfile', '')} {settings.get('globalknownhostsfile', '')}"
    keys: dict[str, None] = {}
    for file in files.split():
        path = os.path.expanduser(file)
        if not os.path.isfile(path):
            continue
        done = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", path],
            check=False,
            capture_output=True,
            timeout=CALL_TIMEOUT_S,
        )
        for line in done.stdout.decode(errors="replace").splitlines():
            words = line.split()
            if len(words) >= 3 and not line.startswith(("#", "@")):
                keys[f"{words[1]} {words[2]}"] = None
    return list(keys)


def _text(tags: Tags) -> str:
    return " ".join(tags.flat())


class SshProvider(Provider):
    name = "ssh"
    summary = "A machine that you have already, over ssh; nothing of it is destroyed"
    capabilities = Capabilities(
        creates=False,
        stops=False,
        stop_saves="nothing: it is not codexctl's to stop",
        host_key=False,
        metadata=False,
        ends_itself=False,
        user_data_bytes=0,
    )

    def options(self) -> Sequence[click.Parameter]:
        import click

        return [click.Argument(["destination"], metavar="[USER@]HOST")]

    def selection(self, options: Mapping[str, Any]) -> dict[str, str]:
        return {}

    def open(self, selection: Mapping[str, str], secrets: SecretStore) -> Account:
        # Short, since a socket's path is at most 108 bytes.
        return SshAccount(tempfile.mkdtemp(prefix="cx-"))


@hookimpl
def codexctl_provider() -> Provider:
    return SshProvider()
