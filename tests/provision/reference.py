"""A provider whose cloud is a folder: for tests of the pipeline, of faults and of crashes.

What exists in the cloud is a JSON file each, so that any process, also one after a SIGKILL, sees
the same cloud and a test can count what is left. REFERENCE_CLOUD names the folder; `faults.json` in
it holds what goes wrong. With REFERENCE_MACHINES=1 each machine is a real one of machine.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from codexctl.hookspecs import hookimpl
from codexctl.provision import errors
from codexctl.provision.model import (
    Account,
    Capabilities,
    Image,
    Machine,
    Order,
    Plan,
    Price,
    Provider,
    Ref,
    Region,
    Resource,
    Size,
    Tags,
    resource_name,
)
from tests.provision import network
from tests.provision.points import point

USER_DATA_BYTES = 64 * 1024
TOKEN = "reference-token-8d1f"
REGIONS = {"north": True, "south": True, "closed": False}
SIZES = {
    "small": Size("small", 1, 1024, 10, Price.per_hour("0.01")),
    "large": Size("large", 8, 16384, 100, Price.per_hour("0.20")),
}
SOUTH_ONLY = {"huge": Size("huge", 64, 262144, 1000, Price.per_hour("4"))}


class Cloud:
    """The folder. Every method is one call of the cloud's API."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.things = self.folder / "things"
        self.things.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def faults(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "faults.json").read_text()))
        except FileNotFoundError:
            return {}

    def call(self, name: str) -> None:
        with open(self.folder / "calls.log", "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        fault = self.faults().get(name) or self.faults().get("*")
        match fault:
            case None:
                return
            case "wrong":
                raise errors.CredentialsWrong(
                    "the reference cloud does not know this token", hint="x"
                )
            case "expired":
                raise errors.CredentialsExpired("the token has expired", hint="log in again")
            case "unreachable":
                raise errors.ProviderUnreachable("nothing listens at the reference cloud")
            case "rate-limit":
                raise errors.RateLimited("too many calls", retry_after_s=0.01)
            case "server-error":
                raise errors.OutcomeUnknown("the reference cloud answered 503")
            case "crash":
                raise RuntimeError(f"a defect, with {TOKEN} in its text")

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.things.glob("*.json"))]

    def put(self, thing: dict[str, Any]) -> None:
        path = self.things / f"{thing['id']}.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(thing))
        temporary.replace(path)

    def drop(self, thing: dict[str, Any]) -> None:
        (self.things / f"{thing['id']}.json").unlink(missing_ok=True)


class ReferenceAccount(Account):
    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud

    def account_id(self) -> str:
        self.cloud.call("account")
        return "reference-1"

    def regions(self) -> Sequence[Region]:
        return [Region(name, available=available) for name, available in REGIONS.items()]

    def sizes(self, region: str) -> Sequence[Size]:
        if not REGIONS.get(region):
            raise errors.UnknownChoice("region", region, [r for r in REGIONS if REGIONS[r]])
        return [*SIZES.values(), *(SOUTH_ONLY.values() if region == "south" else ())]

    def images(self, region: str) -> Sequence[Image]:
        return [Image("linux", default=True)]

    def plan(self, options: Mapping[str, Any]) -> Plan:
        self.cloud.call("plan")
        region, size, image = options["region"], options["size"], options["image"]
        sizes = {known.name: known for known in self.sizes(region)}
        if size not in sizes:
            elsewhere = ["south"] if size in SOUTH_ONLY else []
            raise errors.UnknownChoice("size", size, sizes, elsewhere=elsewhere)
        if image != "linux":
            raise errors.UnknownChoice("image", image, ["linux"])
        price = sizes[size].price
        assert price is not None
        return Plan(region, size, image, price, Price(price.hourly / 10, price.monthly / 10))

    def _mine(self, ref: Ref, kind: str | None = None) -> list[dict[str, Any]]:
        return [
            thing
            for thing in self.cloud.all()
            if thing["tags"].get("codexctl-id") == ref.workspace_id
            and (kind is None or thing["kind"] == kind)
        ]

    def create(self, order: Order) -> Machine:
        point("before create")
        fault = self.cloud.faults().get("create")
        assert order.user_data is not None
        text = order.user_data.reveal()
        if len(text.encode()) > USER_DATA_BYTES:
            raise errors.UserDataTooLarge("too much user data")
        self.cloud.call("create")
        with self.cloud.locked():
            if not self._mine(order.ref, "key"):
                self._add("key", order, {"bills": False})
            point("key registered")
            match fault:
                case "read-only":
                    raise errors.CredentialsReadOnly(
                        "the token may not write", hint="another token"
                    )
                case "quota":
                    raise errors.QuotaReached("1 machine is the limit", hint="ask for more")
                case "payment":
                    raise errors.PaymentRequired("nothing was paid", hint="pay")
                case "no-capacity":
                    raise errors.NoCapacity("no small machine left in north", hint="try south")
            if not self._mine(order.ref, "machine"):
                thing = self._add("machine", order, {"bills": True, "state": "making", "looks": 0})
                if os.environ.get("REFERENCE_MACHINES"):
                    thing["boot"] = self._boot(thing["id"], text)
                    self.cloud.put(thing)
            point("machine made")
        if fault == "lost-answer":
            raise errors.OutcomeUnknown("the answer was lost")
        machine = self.describe(order.ref)
        assert machine is not None
        return machine

    def _add(self, kind: str, order: Order, more: dict[str, Any]) -> dict[str, Any]:
        thing = {
            "id": f"{kind}-{order.ref.workspace_id[:12]}",
            "kind": kind,
            "name": resource_name(order.ref.workspace_id),
            "region": order.ref.region,
            "tags": order.tags.pairs(),
            "created_at": int(time.time()),
            **more,
        }
        self.cloud.put(thing)
        return thing

    def _boot(self, machine_id: str, user_data: str) -> dict[str, Any]:
        from tests.provision import machine

        folder = self.cloud.folder / "machines" / machine_id
        skeleton = self.cloud.folder / "skeleton"
        if skeleton.exists():
            shutil.copytree(skeleton, folder / "home" / "codex", symlinks=True)
        ignore = bool(os.environ.get("CODEXCTL_TEST_IGNORE_USER_DATA"))
        release = os.environ["REFERENCE_MACHINES"]
        if release != "1":
            from tests.provision import real_machine

            text = "#cloud-config\n: not yaml: [" if ignore else user_data
            address, pid = real_machine.boot(folder, text, release)
            return {"port": 22, "pid": pid, "address": address}
        port, pid = machine.boot(folder, user_data, ignore=ignore)
        if os.environ.get(network.ENV):
            port = int(network.ask(f"target {port}"))
        return {"port": port, "pid": pid, "address": "127.0.0.1"}

    def describe(self, ref: Ref) -> Machine | None:
        self.cloud.call("describe")
        found = self._mine(ref, "machine")
        if not found:
            return None
        thing = found[0]
        thing["looks"] += 1
        if thing["state"] == "making" and thing["looks"] > self.cloud.faults().get("slow", 1):
            thing["state"] = self.cloud.faults().get("boots-to", "running")
        elif thing["state"] == "stopping":
            thing["state"] = "stopped"
        self.cloud.put(thing)
        boot = thing.get("boot", {})
        address = boot.get("address", "127.0.0.1")
        return Machine(
            ref=replace(ref, machine_id=thing["id"]),
            state=thing["state"],
            address=address if thing["state"] == "running" else None,
            port=boot.get("port", 22),
            created_at=thing["created_at"],
            detail="the disk is on fire" if thing["state"] == "failed" else "",
        )

    def list_owned(self, regions: Collection[str]) -> Sequence[Resource]:
        self.cloud.call("list")
        if self.cloud.faults().get("list") == "page":
            raise errors.IncompleteList("page 2 of the machines failed")
        return [
            Resource(
                kind=thing["kind"],
                resource_id=thing["id"],
                name=thing["name"],
                region=thing["region"],
                tags=Tags.parse(thing["tags"]),
                bills=thing["bills"],
                created_at=thing["created_at"],
                state=thing.get("state"),
            )
            for thing in self.cloud.all()
            if "codexctl" in thing["tags"]
        ]

    def destroy(self, ref: Ref) -> None:
        point("before destroy")
        self.cloud.call("destroy")
        for thing in self._mine(ref, "machine"):
            boot = thing.get("boot")
            if boot is not None:
                from tests.provision import machine

                machine.halt(boot["pid"])
            self.cloud.drop(thing)
            point("machine deleted")
            # The key is in use while the machine ends: the pipeline comes again for it.
            return
        for thing in self._mine(ref):
            self.cloud.drop(thing)
        point("key deleted")

    def set_expiry(self, ref: Ref, tags: Tags) -> None:
        self.cloud.call("set_expiry")
        for thing in self._mine(ref):
            self.cloud.put({**thing, "tags": tags.pairs()})

    def stop(self, ref: Ref) -> None:
        self._turn(ref, "running", "stopping")

    def start(self, ref: Ref) -> None:
        self._turn(ref, "stopped", "making")

    def _turn(self, ref: Ref, before: str, after: str) -> None:
        self.cloud.call(after)
        for thing in self._mine(ref, "machine"):
            if thing["state"] == before:
                self.cloud.put({**thing, "state": after, "looks": 0})


class ReferenceProvider(Provider):
    name = "reference"
    summary = "A cloud in a folder, for tests"
    capabilities = Capabilities(
        creates=True,
        stops=True,
        stop_saves="all but a tenth",
        host_key=True,
        metadata=False,
        ends_itself=False,
        user_data_bytes=USER_DATA_BYTES,
    )

    def options(self) -> Sequence[Any]:
        import click

        return [
            click.Option(["--region"], default="north", help="Where."),
            click.Option(["--size"], default="small", help="How large."),
            click.Option(["--image"], default="linux", help="With what on it."),
        ]

    def selection(self, options: Mapping[str, Any]) -> dict[str, str]:
        return {}

    def open(self, selection: Mapping[str, str], secrets: Any) -> Account:
        folder = os.environ.get("REFERENCE_CLOUD")
        if not folder:
            raise errors.CredentialsMissing("no reference cloud", hint="set REFERENCE_CLOUD")
        cloud = Cloud(folder)
        if cloud.faults().get("*") == "missing":
            raise errors.CredentialsMissing("no token was found", hint="set REFERENCE_CLOUD")
        return ReferenceAccount(cloud)


@hookimpl
def codexctl_provider() -> Provider:
    return ReferenceProvider()
