"""DigitalOcean's own words for what codexctl orders, and codexctl's for what it lists. No I/O.

A file beside the provider, so that the provider's own is about calls.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from codexctl.provision.model import MARKER, Resource, State, Tags, resource_name

from ._address import ANYWHERE

Body = dict[str, Any]

STATES: dict[str, State] = {
    "new": "making",
    "active": "running",
    "off": "stopped",
    "archive": "ending",
}
ID_TAG = f"{MARKER}-id:"
NAMED = re.compile(rf"{MARKER}-([0-9a-f]{{32}})(?:\.([0-9a-z-]+))?")


def firewall(tags: Tags, tag: str, networks: list[str]) -> Body:
    """The body of a firewall on `tag`: ssh in from `networks`, everything out."""
    anywhere = {"addresses": ANYWHERE}
    return {
        "name": name_of(tags),
        "tags": [tag],
        "inbound_rules": [{"protocol": "tcp", "ports": "22", "sources": {"addresses": networks}}],
        "outbound_rules": [
            {"protocol": protocol, "ports": "0", "destinations": anywhere}
            for protocol in ("tcp", "udp", "icmp")
        ],
    }


def name_of(tags: Tags) -> str:
    """The name of a firewall or key: they carry no tags, so it holds whose they are."""
    return f"{resource_name(tags.workspace_id)}.{tags.owner}"


def named(kind: str, body: Body, known: Mapping[str, Tags]) -> Resource:
    """A firewall or key of a list."""
    tags = tags_of(body["name"], known)
    return Resource(kind, str(body["id"]), body["name"], "", tags, bills=False)


def tags_of(name: str, known: Mapping[str, Tags]) -> Tags | None:
    """What `name_of` put there, with the expiry of the droplet where there still is one."""
    match = NAMED.fullmatch(name)
    return known.get(match[1], Tags(match[1], match[2] or "", None)) if match else None


def machine_resource(droplet: Body) -> Resource:
    """A droplet of a list."""
    return Resource(
        "machine",
        str(droplet["id"]),
        droplet["name"],
        droplet["region"]["slug"],
        Tags.parse_flat(droplet["tags"]),
        True,
        epoch(droplet["created_at"]),
        STATES.get(droplet["status"], "failed"),
    )


def expiry_tags(droplet: Body) -> list[str]:
    """Usually one."""
    return [tag for tag in droplet["tags"] if tag.startswith(f"{MARKER}-expires:")]


def number(image: str) -> str | int:
    """An image's slug, or its number as a number."""
    return int(image) if image.isdecimal() else image


def epoch(text: str) -> int | None:
    """Seconds, of a time as the API writes it; None for what is none."""
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return None


def fingerprint(public_key: str) -> str:
    """The MD5 fingerprint by which DigitalOcean knows a key, whatever its comment."""
    digest = hashlib.md5(base64.b64decode(public_key.split()[1]), usedforsecurity=False)
    return ":".join(re.findall("..", digest.hexdigest()))
