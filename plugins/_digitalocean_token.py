"""A DigitalOcean token: where it is found (environment, own store, doctl) and what it may do.

A file beside the provider, because doctl's file has a format and places of its own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping

from codexctl.provision.errors import CredentialsMissing
from codexctl.provision.model import SecretStore
from codexctl.secret import Secret

VARIABLES = ("DIGITALOCEAN_TOKEN", "DIGITALOCEAN_ACCESS_TOKEN")
STORED_AS = "digitalocean"
MAX_CONFIG_BYTES = 1 << 20
_LINE = re.compile(r"(?P<indent> *)(?P<name>[^\s:#][^:]*?)\s*:(?:\s+(?P<value>\S.*?))?\s*")


SCOPES = (
    "account:read",
    "actions:read",
    "regions:read",
    "sizes:read",
    "image:read",
    "droplet:create",
    "droplet:read",
    "droplet:update",
    "droplet:delete",
    "ssh_key:create",
    "ssh_key:read",
    "ssh_key:delete",
    "firewall:create",
    "firewall:read",
    "firewall:delete",
    "tag:create",
    "tag:read",
    "tag:delete",
)
"""What codexctl needs; each names the resource and the verb."""


def lacking(scopes: Collection[str]) -> list[str]:
    """Which of SCOPES a token has not: old ones have `read` or `write` for everything."""
    return [scope for scope in SCOPES if not _may(scopes, scope)]


def _may(scopes: Collection[str], scope: str) -> bool:
    broad = {"read", "api:read"} if scope.endswith(":read") else {"write", "api:write"}
    return scope in scopes or bool(broad & set(scopes))


def find_token(context: str, environ: Mapping[str, str], secrets: SecretStore) -> Secret:
    """The token to use; with a `context`, that of doctl's context alone. CredentialsMissing."""
    looked: list[str] = []
    if not context:
        for name in VARIABLES:
            if environ.get(name):
                return Secret(environ[name].strip())
        stored = secrets.get(STORED_AS)
        if stored:
            return stored
        looked += [*VARIABLES, "codexctl's own store"]
    for path in doctl_paths(environ, sys.platform):
        looked.append(path)
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_CONFIG_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        token = doctl_token(text, context or environ.get("DIGITALOCEAN_CONTEXT", ""))
        if token:
            return token
    wanted = f"doctl context {context}" if context else "DigitalOcean token"
    remedy = "codexctl provider login digitalocean"
    if context:
        remedy = f"doctl auth init --context {context}"
    raise CredentialsMissing(
        f"there is no {wanted} in {', '.join(looked)}", hint=f"make one and keep it: {remedy}"
    )


def doctl_paths(environ: Mapping[str, str], platform: str) -> list[str]:
    """Where doctl keeps its configuration on this platform, most usual first."""
    home = environ.get("HOME") or os.path.expanduser("~")
    if platform == "darwin":
        folders = [os.path.join(home, "Library", "Application Support")]
    elif platform == "win32":
        folders = [environ.get("APPDATA", "")]
    else:
        own = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        folders = [own, os.path.join(home, "snap", "doctl", "current", ".config")]
    return [os.path.join(folder, "doctl", "config.yaml") for folder in folders if folder]


def doctl_token(text: str, context: str = "") -> Secret | None:
    """The token of a context in doctl's config.yaml; without one, of the one it has switched to.

    Read: `access-token` (the context called default), `context`, and the map `auth-contexts`, as
    doctl writes them; whatever else is in the file is passed over.
    """
    section = ""
    top: dict[str, str] = {}
    contexts: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        name, value = _plain(match["name"]), _plain(match["value"] or "")
        if not match["indent"]:
            section = name
            top[name] = value
        elif section == "auth-contexts":
            contexts[name] = value
    chosen = context or top.get("context", "") or "default"
    token = top.get("access-token", "") if chosen == "default" else contexts.get(chosen, "")
    return Secret(token) if token else None


def _plain(text: str) -> str:
    """A YAML scalar of one line without its quotes or comment."""
    if text[:1] in ("'", '"') and text.find(text[0], 1) > 0:
        return text[1 : text.index(text[0], 1)]
    return re.split(r"\s#", text, maxsplit=1)[0].strip()
