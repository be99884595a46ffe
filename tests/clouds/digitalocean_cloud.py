"""The state of the fake DigitalOcean: what exists, and what each call does to it. No I/O.

Droplets are new, then active, then billed until destroyed; names, tags and keys can be taken;
lists come in pages; tokens have scopes; accounts have limits. Looking at a droplet is what makes
time pass for it, so that nothing here sleeps.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.clouds.digitalocean_answers import Answer, Call, missing, refusal, unprocessable
from tests.clouds.digitalocean_catalogue import IMAGES, REGIONS, SIZES

TOKEN = "dop_v1_" + "5" * 64
READ_ONLY_TOKEN = "dop_v1_" + "6" * 64
USER_DATA_MAX_BYTES = 65536

DEFAULT_PAGE, LARGEST_PAGE = 20, 200
ALL = "*"

Body = dict[str, Any]


class Cloud:
    """The cloud; set the attributes to make it behave."""

    url = "https://api.digitalocean.com/v2/"

    def __init__(self) -> None:
        self.tokens: dict[str, set[str]] = {TOKEN: {ALL}, READ_ONLY_TOKEN: {"read"}}
        self.clock: Callable[[], float] = time.time
        self.boot_polls = 1
        """How often a new droplet is looked at before it is active with an address."""
        self.linger_polls = 0
        """How often a destroyed droplet can still be seen."""
        self.boot_error = False
        """The create action ends in error and the droplet stays new."""
        self.largest_page = LARGEST_PAGE
        self.key_lists_a_minute = 10
        self.droplet_limit = 10
        self.account_status = "active"
        self.sold_out: set[tuple[str, str]] = set()
        """(region, size) pairs without capacity."""
        self.on_boot: Callable[[Body], str] | None = None
        """Answers the address of a droplet that becomes active; a real machine, perhaps."""
        self.on_destroy: Callable[[int], None] | None = None
        self.regions, self.sizes, self.images = REGIONS(), SIZES(), IMAGES()
        self.droplets: dict[int, Body] = {}
        self.user_data: dict[int, str] = {}
        self.keys: dict[int, Body] = {}
        self.firewalls: dict[str, Body] = {}
        self.tags: dict[str, str] = {}
        """Lower-case name to the name as first written; DigitalOcean compares without case."""
        self.actions: dict[int, Body] = {}
        self._ending: dict[int, int] = {}
        self._polls: Counter[int] = Counter()
        self._key_lists: list[float] = []
        self._next_id = 1000
        self._scopes: set[str] = set()

    def exists(self) -> dict[str, int]:
        """What is there now; the first of them bills."""
        return {
            "droplets": len(self.droplets),
            "keys": len(self.keys),
            "firewalls": len(self.firewalls),
            "tags of workspaces": sum(name.startswith("codexctl-id:") for name in self.tags),
        }

    def hourly_bill(self) -> float:
        """Dollars an hour for what exists, running or not."""
        return sum(float(droplet["size"]["price_hourly"]) for droplet in self.droplets.values())

    def perform(self, call: Call) -> Answer:
        token = call.headers.get("Authorization", "").removeprefix("Bearer ")
        scopes = self.tokens.get(token)
        if scopes is None:
            return refusal(401, "Unauthorized", "Unable to authenticate you")
        self._scopes = scopes
        query = dict(parse_qsl(urlsplit(call.target).query))
        body: Body = json.loads(call.body) if call.body else {}
        for method, pattern, scope, handler in _ROUTES:
            match = re.fullmatch(pattern, call.path)
            if match is None or method != call.method:
                continue
            if scope and not scopes & {ALL, scope, scope.partition(":")[2]}:
                return refusal(403, "Forbidden", "You are not authorized to perform this operation")
            return handler(self, *map(unquote, match.groups()), query=query, body=body)
        return missing()

    def _page(self, member: str, items: list[Body], path: str, query: Body) -> Answer:
        size = min(int(query.pop("per_page", DEFAULT_PAGE)), self.largest_page)
        page = int(query.pop("page", 1))
        links: Body = {}
        if page * size < len(items):
            rest = "".join(f"&{name}={value}" for name, value in query.items())
            following = f"{self.url}{path}?page={page + 1}&per_page={size}{rest}"
            links = {"pages": {"next": following, "last": following}}
        chosen = items[(page - 1) * size : page * size]
        return Answer(200, {member: chosen, "links": links, "meta": {"total": len(items)}})

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _now(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock()))

    # Account and catalogue

    def get_account(self, query: Body, body: Body) -> Answer:
        account = {
            "droplet_limit": self.droplet_limit,
            "floating_ip_limit": 3,
            "email": "sammy@example.com",
            "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef",
            "email_verified": True,
            "status": self.account_status,
            "status_message": "",
            "team": {"uuid": "5df3e3004a17e242b7c20ca6c9fc25b701a47ece", "name": "My Team"},
        }
        return Answer(200, {"account": account})

    def token_info(self, query: Body, body: Body) -> Answer:
        scopes = ["read", "write"] if ALL in self._scopes else sorted(self._scopes)
        return Answer(200, {"resource_owner_id": 1, "scopes": scopes, "expires_in_seconds": None})

    def get_regions(self, query: Body, body: Body) -> Answer:
        return self._page("regions", self.regions, "regions", query)

    def get_sizes(self, query: Body, body: Body) -> Answer:
        return self._page("sizes", self.sizes, "sizes", query)

    def get_images(self, query: Body, body: Body) -> Answer:
        return self._page("images", self.images, "images", query)

    def get_image(self, name: str, query: Body, body: Body) -> Answer:
        for image in self.images:
            if name in (str(image["id"]), image["slug"]):
                return Answer(200, {"image": image})
        return missing()

    # Keys

    def list_keys(self, query: Body, body: Body) -> Answer:
        now = self.clock()
        self._key_lists = [at for at in self._key_lists if now - at < 60] + [now]
        if len(self._key_lists) > self.key_lists_a_minute:
            return refusal(429, "too_many_requests", "API Rate limit exceeded.", Retry_After="60")
        return self._page("ssh_keys", list(self.keys.values()), "account/keys", query)

    def create_key(self, query: Body, body: Body) -> Answer:
        words = body["public_key"].split()
        try:
            blob = base64.b64decode(words[1], validate=True)
        except (IndexError, ValueError):
            return unprocessable("Key invalid, key should be of the format `type key [comment]`")
        digest = hashlib.md5(blob, usedforsecurity=False).hexdigest()
        fingerprint = ":".join(re.findall("..", digest))
        if any(key["fingerprint"] == fingerprint for key in self.keys.values()):
            return unprocessable("SSH Key is already in use on your account")
        key = {"id": self._new_id(), "fingerprint": fingerprint} | body
        self.keys[key["id"]] = key
        return Answer(201, {"ssh_key": key})

    def _key(self, name: str) -> Body | None:
        for key in self.keys.values():
            if name in (str(key["id"]), key["fingerprint"]):
                return key
        return None

    def get_key(self, name: str, query: Body, body: Body) -> Answer:
        key = self._key(name)
        return missing() if key is None else Answer(200, {"ssh_key": key})

    def delete_key(self, name: str, query: Body, body: Body) -> Answer:
        key = self._key(name)
        if key is None:
            return missing()
        del self.keys[key["id"]]
        return Answer(204)

    # Tags

    def _tag(self, name: str) -> Body:
        tagged = [droplet for droplet in self.droplets.values() if name in droplet["tags"]]
        counts = {kind: {"count": 0} for kind in ("images", "volumes", "volume_snapshots")}
        resources = {"count": len(tagged), "droplets": {"count": len(tagged)}, **counts}
        return {"name": name, "resources": resources}

    def _add_tag(self, name: str) -> str:
        return self.tags.setdefault(name.lower(), name)

    def list_tags(self, query: Body, body: Body) -> Answer:
        return self._page("tags", [self._tag(name) for name in self.tags.values()], "tags", query)

    def create_tag(self, query: Body, body: Body) -> Answer:
        return Answer(201, {"tag": self._tag(self._add_tag(body["name"]))})

    def get_tag(self, name: str, query: Body, body: Body) -> Answer:
        if name not in self.tags.values():
            return missing()
        return Answer(200, {"tag": self._tag(name)})

    def delete_tag(self, name: str, query: Body, body: Body) -> Answer:
        if name not in self.tags.values():
            return missing()
        del self.tags[name.lower()]
        for thing in (*self.droplets.values(), *self.firewalls.values()):
            thing["tags"] = [tag for tag in thing["tags"] if tag != name]
        return Answer(204)

    def tag_resources(self, name: str, query: Body, body: Body) -> Answer:
        return self._retag(name, body, add=True)

    def untag_resources(self, name: str, query: Body, body: Body) -> Answer:
        return self._retag(name, body, add=False)

    def _retag(self, name: str, body: Body, *, add: bool) -> Answer:
        if name not in self.tags.values():
            return missing()
        for resource in body["resources"]:
            droplet = self.droplets.get(int(resource["resource_id"]))
            if droplet is None:
                return missing()
            kept = [tag for tag in droplet["tags"] if tag != name]
            droplet["tags"] = [*kept, name] if add else kept
        return Answer(204)

    # Firewalls

    def list_firewalls(self, query: Body, body: Body) -> Answer:
        return self._page("firewalls", list(self.firewalls.values()), "firewalls", query)

    def create_firewall(self, query: Body, body: Body) -> Answer:
        if any(wall["name"] == body["name"] for wall in self.firewalls.values()):
            return refusal(409, "conflict", "duplicate name")
        for tag in body.get("tags") or []:
            if tag not in self.tags.values():
                return unprocessable(f"tag {tag} does not exist")
        for rule in body.get("inbound_rules") or []:
            for address in rule["sources"].get("addresses", []):
                try:
                    ipaddress.ip_network(address)
                except ValueError:
                    return refusal(400, "bad_request", f"invalid CIDR address: {address}")
        wall = {
            "id": str(uuid.uuid4()),
            "status": "waiting",
            "created_at": self._now(),
            "pending_changes": [],
            "droplet_ids": [],
            "tags": [],
        } | body
        self.firewalls[wall["id"]] = wall
        return Answer(202, {"firewall": wall})

    def get_firewall(self, name: str, query: Body, body: Body) -> Answer:
        wall = self.firewalls.get(name)
        return missing() if wall is None else Answer(200, {"firewall": wall})

    def delete_firewall(self, name: str, query: Body, body: Body) -> Answer:
        return missing() if self.firewalls.pop(name, None) is None else Answer(204)

    # Droplets

    def create_droplet(self, query: Body, body: Body) -> Answer:
        refused = self._refuse_droplet(body)
        if refused is not None:
            return refused
        size = next(size for size in self.sizes if size["slug"] == body["size"])
        droplet_id = self._new_id()
        droplet = {
            "id": droplet_id,
            "name": body["name"],
            "memory": size["memory"],
            "vcpus": size["vcpus"],
            "disk": size["disk"],
            "locked": False,
            "status": "new",
            "kernel": None,
            "created_at": self._now(),
            "features": [],
            "backup_ids": [],
            "next_backup_window": None,
            "snapshot_ids": [],
            "image": next(i for i in self.images if body["image"] in (i["id"], i["slug"])),
            "volume_ids": [],
            "size": size,
            "size_slug": size["slug"],
            "networks": {"v4": [], "v6": []},
            "region": next(region for region in self.regions if region["slug"] == body["region"]),
            "tags": [self._add_tag(tag) for tag in body.get("tags") or []],
        }
        self.droplets[droplet_id] = droplet
        self.user_data[droplet_id] = body.get("user_data", "")
        action = self._act(droplet, "create")
        link = {"id": action["id"], "rel": "create", "href": f"{self.url}actions/{action['id']}"}
        return Answer(202, {"droplet": droplet, "links": {"actions": [link]}})

    def _refuse_droplet(self, body: Body) -> Answer | None:
        """What the description cannot know: slugs, limits, what goes with what."""
        size = next((size for size in self.sizes if size["slug"] == body["size"]), None)
        image = self.get_image(str(body["image"]), {}, {})
        region = body.get("region")
        if size is None:
            return unprocessable("You specified an invalid size for Droplet creation.")
        if image.status != 200:
            return unprocessable("You specified an invalid image for Droplet creation.")
        if region not in size["regions"]:
            return unprocessable("The size is not available in the specified region.")
        if (region, size["slug"]) in self.sold_out:
            return unprocessable("Size is currently unavailable in this region.")
        if len(body.get("user_data", "").encode()) > USER_DATA_MAX_BYTES:
            return unprocessable("User data is too long (maximum is 65536 bytes)")
        if any(self._key(str(key)) is None for key in body.get("ssh_keys", [])):
            return unprocessable("1234 are invalid key identifiers for Droplet creation.")
        if self.account_status == "locked":
            return refusal(402, "payment_required", "Your account is locked: update your billing.")
        if len(self.droplets) >= self.droplet_limit:
            return unprocessable("creating this/these droplet(s) will exceed your droplet limit")
        return None

    def _act(self, droplet: Body, word: str) -> Body:
        action = {
            "id": self._new_id(),
            "status": "in-progress",
            "type": word,
            "started_at": self._now(),
            "completed_at": None,
            "resource_id": droplet["id"],
            "resource_type": "droplet",
            "region": droplet["region"],
            "region_slug": droplet["region"]["slug"],
        }
        self.actions[action["id"]] = action
        return action

    def finish(self, droplet_id: int, word: str, status: str) -> None:
        for action in self.actions.values():
            if action["resource_id"] == droplet_id and action["type"] == word:
                action["status"] = status
                action["completed_at"] = self._now()

    def _look(self, droplet_id: int) -> Body | None:
        """The droplet as it is now; looking is what makes time pass for it."""
        droplet = self.droplets.get(droplet_id)
        if droplet is None:
            return None
        if droplet_id in self._ending:
            self._ending[droplet_id] -= 1
            if self._ending[droplet_id] < 0:
                self._remove(droplet_id)
                return None
            return droplet
        if droplet["status"] == "new":
            if self.boot_error:
                self.finish(droplet_id, "create", "errored")
            elif self._polls[droplet_id] >= self.boot_polls:
                self._boot(droplet)
            self._polls[droplet_id] += 1
        return droplet

    def _boot(self, droplet: Body) -> None:
        address = self.on_boot(droplet) if self.on_boot else "203.0.113.10"
        droplet["status"] = "active"
        droplet["networks"]["v4"] = [
            {"ip_address": "10.16.0.5", "netmask": "255.255.0.0", "gateway": "", "type": "private"},
            {
                "ip_address": address,
                "netmask": "255.255.255.0",
                "gateway": "203.0.113.1",
                "type": "public",
            },
        ]
        self.finish(droplet["id"], "create", "completed")

    def _remove(self, droplet_id: int) -> None:
        del self.droplets[droplet_id]
        self._ending.pop(droplet_id, None)
        if self.on_destroy:
            self.on_destroy(droplet_id)

    def list_droplets(self, query: Body, body: Body) -> Answer:
        tag = query.get("tag_name")
        looked = [self._look(droplet_id) for droplet_id in list(self.droplets)]
        chosen = [item for item in looked if item and (tag is None or tag in item["tags"])]
        return self._page("droplets", chosen, "droplets", query)

    def get_droplet(self, name: str, query: Body, body: Body) -> Answer:
        droplet = self._look(int(name))
        return missing() if droplet is None else Answer(200, {"droplet": droplet})

    def delete_droplet(self, name: str, query: Body, body: Body) -> Answer:
        droplet_id = int(name)
        if droplet_id not in self.droplets or droplet_id in self._ending:
            return missing()
        if self.linger_polls:
            self._ending[droplet_id] = self.linger_polls
        else:
            self._remove(droplet_id)
        return Answer(204)

    def act(self, name: str, query: Body, body: Body) -> Answer:
        droplet = self.droplets.get(int(name))
        if droplet is None:
            return missing()
        if droplet["locked"]:
            return unprocessable("Droplet already has a pending event.")
        action = self._act(droplet, body["type"])
        wanted = {"shutdown": "off", "power_off": "off", "power_on": "active"}
        droplet["status"] = wanted.get(body["type"], droplet["status"])
        self.finish(droplet["id"], body["type"], "completed")
        return Answer(201, {"action": action})

    def list_actions(self, name: str, query: Body, body: Body) -> Answer:
        if int(name) not in self.droplets:
            return missing()
        found = [action for action in self.actions.values() if action["resource_id"] == int(name)]
        return self._page("actions", found[::-1], f"droplets/{name}/actions", query)


_ROUTES: list[tuple[str, str, str, Callable[..., Answer]]] = [
    ("GET", "/v1/oauth/token/info", "", Cloud.token_info),
    ("GET", "/v2/account", "account:read", Cloud.get_account),
    ("GET", "/v2/regions", "regions:read", Cloud.get_regions),
    ("GET", "/v2/sizes", "sizes:read", Cloud.get_sizes),
    ("GET", "/v2/images", "image:read", Cloud.get_images),
    ("GET", "/v2/images/([^/]+)", "image:read", Cloud.get_image),
    ("GET", "/v2/account/keys", "ssh_key:read", Cloud.list_keys),
    ("POST", "/v2/account/keys", "ssh_key:create", Cloud.create_key),
    ("GET", "/v2/account/keys/([^/]+)", "ssh_key:read", Cloud.get_key),
    ("DELETE", "/v2/account/keys/([^/]+)", "ssh_key:delete", Cloud.delete_key),
    ("GET", "/v2/tags", "tag:read", Cloud.list_tags),
    ("POST", "/v2/tags", "tag:create", Cloud.create_tag),
    ("GET", "/v2/tags/([^/]+)", "tag:read", Cloud.get_tag),
    ("DELETE", "/v2/tags/([^/]+)", "tag:delete", Cloud.delete_tag),
    ("POST", "/v2/tags/([^/]+)/resources", "tag:create", Cloud.tag_resources),
    ("DELETE", "/v2/tags/([^/]+)/resources", "tag:delete", Cloud.untag_resources),
    ("GET", "/v2/firewalls", "firewall:read", Cloud.list_firewalls),
    ("POST", "/v2/firewalls", "firewall:create", Cloud.create_firewall),
    ("GET", "/v2/firewalls/([^/]+)", "firewall:read", Cloud.get_firewall),
    ("DELETE", "/v2/firewalls/([^/]+)", "firewall:delete", Cloud.delete_firewall),
    ("GET", "/v2/droplets", "droplet:read", Cloud.list_droplets),
    ("POST", "/v2/droplets", "droplet:create", Cloud.create_droplet),
    ("GET", "/v2/droplets/([0-9]+)", "droplet:read", Cloud.get_droplet),
    ("DELETE", "/v2/droplets/([0-9]+)", "droplet:delete", Cloud.delete_droplet),
    ("POST", "/v2/droplets/([0-9]+)/actions", "droplet:update", Cloud.act),
    ("GET", "/v2/droplets/([0-9]+)/actions", "droplet:read", Cloud.list_actions),
]
