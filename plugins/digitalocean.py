"""DigitalOcean: droplets, by python-digitalocean as _digitalocean_api.py hardens it.

For each workspace there are, in the order in which they are made: the tag `codexctl-id:ID`, a
firewall on that tag (so the droplet is never up without it), the public key, the droplet. Firewall
and key have no tags of their own; their name is `codexctl-ID.OWNER`. DigitalOcean has no tokens of
idempotency: `create` looks for its tag first, and every other name is unique by the cloud's rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codexctl.errors import UsageError
from codexctl.hookspecs import hookimpl
from codexctl.provision.errors import (
    CredentialsReadOnly,
    NameTaken,
    OutcomeUnknown,
    ProviderError,
    UserDataTooLarge,
)
from codexctl.provision.model import (
    MARKER,
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
    Tags,
    require_text,
    resource_name,
)
from codexctl.secret import Secret

from . import _address as address
from . import _digitalocean_values as values
from ._digitalocean_token import SCOPES, STORED_AS, find_token, lacking

if TYPE_CHECKING:
    import click

    from ._digitalocean_api import Transport

Body = dict[str, Any]

DEFAULT_SIZE = "s-2vcpu-4gb"
USER_DATA_BYTES = 65536
SLOW_START_S = 180.0
"""A droplet that is new for longer is asked for the outcome of its create action."""
ENDPOINT_VARIABLE = "DIGITALOCEAN_END_POINT"
TOKENS_PAGE = "https://cloud.digitalocean.com/account/api/tokens"


@hookimpl
def codexctl_provider() -> Provider:
    return DigitalOcean()


class DigitalOcean(Provider):
    name = "digitalocean"
    summary = "Droplets of DigitalOcean"
    capabilities = Capabilities(
        creates=True,
        stops=True,
        stop_saves="nothing: a droplet that is off is billed in full until it is destroyed",
        host_key=True,
        metadata=True,
        ends_itself=False,
        user_data_bytes=USER_DATA_BYTES,
    )

    def options(self) -> Sequence[click.Parameter]:
        import click

        return [
            click.Option(["--region"], metavar="SLUG", help="Data center, as lon1 or nyc3."),
            click.Option(
                ["--size"], metavar="SLUG", default=DEFAULT_SIZE, show_default=True, help="Droplet."
            ),
            click.Option(
                ["--image"],
                metavar="SLUG",
                help="Image; Codex Universal where it is listed, else the newest Ubuntu LTS.",
            ),
            click.Option(
                ["--ssh-from"],
                metavar="NETWORK",
                multiple=True,
                help="Let ssh in from there only; 'here' is this device's address. "
                "Anywhere without it.",
            ),
            click.Option(["--context"], metavar="NAME", help="Use the token of a doctl context."),
        ]

    def selection(self, options: Mapping[str, Any]) -> dict[str, str]:
        chosen = {
            "context": options.get("context") or "",
            "endpoint": os.environ.get(ENDPOINT_VARIABLE, ""),
        }
        return {name: value for name, value in chosen.items() if value}

    def open(self, selection: Mapping[str, str], secrets: SecretStore) -> Droplets:
        token = find_token(selection.get("context", ""), os.environ, secrets)
        return Droplets(_transport(selection, token))

    def login(
        self, selection: Mapping[str, str], secrets: SecretStore, ask: Callable[[str], Secret]
    ) -> list[str]:
        token = ask(f"API token (make one at {TOKENS_PAGE}):")
        if not token:
            raise UsageError("no token was given", hint=f"make one at {TOKENS_PAGE}")
        transport = _transport(selection, token)
        try:
            owner = Droplets(transport).owner()
            scopes = transport.scopes()
        finally:
            transport.close()
        missing = [] if scopes is None else lacking(scopes)
        if missing:
            raise CredentialsReadOnly(
                f"this token lacks {', '.join(missing)}; it was not kept",
                hint=f"make one with full access, or with the scopes that "
                f"'codexctl provider policy digitalocean' prints, at {TOKENS_PAGE}",
            )
        return [
            f"the token belongs to {owner}",
            "it may do all that codexctl needs"
            if scopes is not None
            else "it may read; DigitalOcean did not tell what else it may do",
            f"kept in {secrets.put(STORED_AS, token)}",
        ]

    def policy(self) -> str:
        return "\n".join(SCOPES) + "\n"


def _transport(selection: Mapping[str, str], token: Secret) -> Transport:
    try:
        from ._digitalocean_api import DEFAULT_URL, Transport
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"the DigitalOcean SDK is not installed: no module {error.name}",
            hint="where codexctl is: uv tool install '.[digitalocean]' in its clone",
        ) from None
    return Transport(selection.get("endpoint") or DEFAULT_URL, token)


class Droplets(Account):
    """An account, or a team, of DigitalOcean."""

    def __init__(self, transport: Transport) -> None:
        from ._digitalocean_api import Api
        from ._digitalocean_catalogue import Catalogue

        self._transport = transport
        self._api = Api(transport)
        self._catalogue = Catalogue(self._api)
        self._leaving: set[str] = set()
        """Workspaces whose firewall and key this object has deleted."""

    def close(self) -> None:
        self._transport.close()

    def account_id(self) -> str:
        account = self._api.read("account", "account")
        return str((account.get("team") or account)["uuid"])

    def owner(self) -> str:
        account = self._api.read("account", "account")
        team = (account.get("team") or {}).get("name")
        return f"{account['email']}" + (f", team {team}" if team else "")

    def regions(self) -> list[Region]:
        return self._catalogue.regions()

    def sizes(self, region: str) -> list[Size]:
        return self._catalogue.sizes(region)

    def images(self, region: str) -> list[Image]:
        return self._catalogue.images(region)

    def plan(self, options: Mapping[str, Any]) -> Plan:
        region = options.get("region") or ""
        if not region:
            raise UsageError(
                "--region is needed", hint=f"one of: {', '.join(self._catalogue.places())}"
            )
        size = self._catalogue.size(region, require_text(options, "size"))
        wanted = options.get("image") or ""
        image = self._catalogue.image(region, wanted, size)
        networks = address.sources(options.get("ssh_from") or ())
        lines = [f"a firewall that lets ssh in from {address.told(networks)}, and nothing else"]
        if not wanted and not image.codex_universal:
            lines.append(
                f"the image is {image.title}: DigitalOcean lists no Codex Universal in {region}"
            )
        return Plan(
            region=region,
            size=size.name,
            image=image.name,
            price=size.price,
            price_stopped=size.price,
            lines=tuple(lines),
            extra={"ssh_from": ",".join(networks)},
        )

    # Machines

    def create(self, order: Order) -> Machine:
        from ._digitalocean_api import Droplet, usable_body

        size = len((order.user_data or Secret("")).reveal().encode())
        if size > USER_DATA_BYTES:
            raise UserDataTooLarge(
                f"the user data is {size} bytes; DigitalOcean takes {USER_DATA_BYTES}",
                hint="shorten the --setup scripts",
            )
        found = self._droplets(order.ref)
        if found:
            return self._machine(order.ref, self._oldest(found))
        first = self._make_firewall(order)
        key_id = self._register_key(order)
        droplet = Droplet(
            self._transport,
            name=order.name,
            region=order.plan.region,
            size_slug=order.plan.size,
            image=values.number(order.plan.image),
            ssh_keys=[key_id],
            tags=order.tags.flat(),
            # A Secret in the library's object too; the transport reveals it into the body.
            user_data=order.user_data,
        )
        try:
            with usable_body("POST droplets"):
                droplet.create()
                int(droplet.id)
        except OutcomeUnknown:
            # The library reads the id first: with one, the droplet is there.
            if not isinstance(droplet.id, int):
                raise
        if not first and (found := self._droplets(order.ref)):
            droplet.id = self._oldest(found)["id"]
        ref = Ref(order.ref.workspace_id, order.plan.region, str(droplet.id))
        return Machine(ref, "making", None)

    def _make_firewall(self, order: Order) -> bool:
        """False: it was there, from an earlier call under this id."""
        from ._digitalocean_errors import Taken

        tag = values.ID_TAG + order.ref.workspace_id
        # A firewall may only name tags that exist; making one twice is harmless.
        self._api.order("POST", "tags", name=tag)
        networks = order.plan.extra["ssh_from"].split(",")
        try:
            self._api.order("POST", "firewalls", **values.firewall(order.tags, tag, networks))
        except Taken:
            return False
        return True

    def _register_key(self, order: Order) -> int:
        """The id of the public key there; one that the person has registered already will do."""
        from ._digitalocean_api import Key, usable_body
        from ._digitalocean_errors import NotThere, Taken

        key = Key(self._transport, name=values.name_of(order.tags), public_key=order.public_key)
        try:
            with usable_body("POST account/keys"):
                key.create()
                return int(key.id)
        except Taken:
            print_ = values.fingerprint(order.public_key)
        try:
            return int(self._api.read(f"account/keys/{print_}", "ssh_key")["id"])
        except NotThere:
            raise NameTaken(
                f"the key {print_} is taken, but not in this account's list",
                hint="codexctl workspace destroy, then provision again with a new key",
            ) from None

    def _droplets(self, ref: Ref) -> list[Body]:
        """Those of this workspace, oldest first; usually one."""
        found = self._api.list_all(
            "droplets", "droplets", tag_name=values.ID_TAG + ref.workspace_id
        )
        return sorted(found, key=lambda droplet: int(droplet["id"]))

    def _oldest(self, found: list[Body]) -> Body:
        """One machine for one id: an order that went unanswered can be carried out after the next
        one looked for it, and the droplet that nobody has seen is destroyed."""
        from ._digitalocean_api import Droplet
        from ._digitalocean_errors import unless_gone

        oldest, *others = found
        for other in others:
            unless_gone(Droplet(self._transport, id=other["id"]).destroy)
        return oldest

    def describe(self, ref: Ref) -> Machine | None:
        from ._digitalocean_errors import NotThere

        if ref.machine_id:
            try:
                droplet = self._api.read(f"droplets/{int(ref.machine_id)}", "droplet")
                if values.ID_TAG + ref.workspace_id in droplet["tags"]:
                    return self._machine(ref, droplet)
            except NotThere:
                pass
        found = self._droplets(ref)
        return self._machine(ref, found[0]) if found else None

    def _machine(self, ref: Ref, droplet: Body) -> Machine:
        state, detail = values.STATES.get(droplet["status"], "failed"), ""
        created_at = values.epoch(droplet["created_at"])
        age_s = self._transport.now() - created_at if created_at is not None else 0.0
        if state == "making" and age_s > SLOW_START_S:
            actions = self._api.list_all(f"droplets/{droplet['id']}/actions", "actions")
            if any(a["type"] == "create" and a["status"] == "errored" for a in actions):
                state, detail = "failed", "DigitalOcean could not start the droplet"
        public = [net for net in droplet["networks"]["v4"] if net["type"] == "public"]
        return Machine(
            Ref(ref.workspace_id, droplet["region"]["slug"], str(droplet["id"])),
            state,
            public[0]["ip_address"] if public else None,
            created_at=created_at,
            detail=detail,
        )

    def stop(self, ref: Ref) -> None:
        for droplet in self._droplets(ref):
            if droplet["status"] != "active":
                continue
            path = f"droplets/{droplet['id']}/actions"
            shutdowns = [a for a in self._api.list_all(path, "actions") if a["type"] == "shutdown"]
            newest = max(shutdowns, key=lambda action: int(action["id"]), default=None)
            if newest is not None and newest["status"] == "in-progress":
                continue
            # A machine that did not heed the last shutdown is switched off.
            word = (
                "power_off" if newest is not None and newest["status"] == "errored" else "shutdown"
            )
            self._api.order("POST", path, type=word)

    def start(self, ref: Ref) -> None:
        for droplet in self._droplets(ref):
            if droplet["status"] == "off":
                self._api.order("POST", f"droplets/{droplet['id']}/actions", type="power_on")

    def set_expiry(self, ref: Ref, tags: Tags) -> None:
        wanted = tags.flat()
        for droplet in self._droplets(ref):
            resources = [{"resource_id": str(droplet["id"]), "resource_type": "droplet"}]
            for tag in (tag for tag in wanted if tag not in droplet["tags"]):
                self._api.order("POST", "tags", name=tag)
                self._api.order("POST", f"tags/{tag}/resources", resources=resources)
            old = [tag for tag in values.expiry_tags(droplet) if tag not in wanted]
            for tag in old:
                self._api.order("DELETE", f"tags/{tag}/resources", resources=resources)
            self._delete_unused(old)

    # What is there

    def list_owned(self, regions: Collection[str]) -> list[Resource]:
        """The whole account: DigitalOcean lists all regions at once."""
        return self._resources(self._api.list_all("droplets", "droplets", tag_name=MARKER))

    def resources(self, ref: Ref) -> list[Resource]:
        droplets = self._droplets(ref)
        if droplets and ref.workspace_id in self._leaving:
            # Keys can be listed ten times a minute; while the machine goes, it alone is looked at.
            return [values.machine_resource(droplet) for droplet in droplets]
        return [
            resource
            for resource in self._resources(droplets)
            if resource.tags is not None and resource.tags.workspace_id == ref.workspace_id
        ]

    def _resources(self, droplets: list[Body]) -> list[Resource]:
        machines = [values.machine_resource(droplet) for droplet in droplets]
        tags = {machine.tags.workspace_id: machine.tags for machine in machines if machine.tags}
        named = [
            Resource(
                kind, str(body["id"]), body["name"], "", values.tags_of(body["name"], tags), False
            )
            for kind, bodies in (("firewall", self._firewalls()), ("key", self._keys()))
            for body in bodies
        ]
        words = [
            Resource("tag", name, name, "", tags.get(known.workspace_id, known), False)
            for name in (body["name"] for body in self._api.list_all("tags", "tags"))
            if name.startswith(values.ID_TAG) and (known := Tags.parse_flat([name])) is not None
        ]
        return machines + named + words

    def _firewalls(self) -> list[Body]:
        walls = self._api.list_all("firewalls", "firewalls")
        return [wall for wall in walls if wall["name"].startswith(f"{MARKER}-")]

    def _keys(self) -> list[Body]:
        keys = self._api.list_all("account/keys", "ssh_keys")
        return [key for key in keys if key["name"].startswith(f"{MARKER}-")]

    def destroy(self, ref: Ref) -> None:
        from ._digitalocean_api import Droplet, Key
        from ._digitalocean_errors import unless_gone

        droplets = self._droplets(ref)
        for droplet in droplets:
            unless_gone(Droplet(self._transport, id=droplet["id"]).destroy)
        if ref.workspace_id not in self._leaving:
            own = resource_name(ref.workspace_id)
            for wall in self._firewalls():
                if wall["name"].startswith(own):
                    self._delete(f"firewalls/{wall['id']}")
            for key in self._keys():
                if key["name"].startswith(own):
                    unless_gone(Key(self._transport, id=key["id"]).destroy)
            self._leaving.add(ref.workspace_id)
        # The tag is how the droplet is found, so it goes last; and never while one may remain.
        if droplets and self._droplets(ref):
            return
        self._delete(f"tags/{values.ID_TAG}{ref.workspace_id}")
        self._delete_unused(
            sorted({tag for droplet in droplets for tag in values.expiry_tags(droplet)})
        )

    def _delete_unused(self, tags: list[str]) -> None:
        from ._digitalocean_errors import NotThere

        for tag in tags:
            try:
                in_use = self._api.read(f"tags/{tag}", "tag")["resources"]["count"]
            except NotThere:
                continue
            if not in_use:
                self._delete(f"tags/{tag}")

    def _delete(self, path: str) -> None:
        from ._digitalocean_errors import unless_gone

        unless_gone(lambda: self._api.order("DELETE", path))
