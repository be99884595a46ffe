"""The contract between codexctl and a provider plugin: values, and two small classes to implement.

`Provider` says what there is without any I/O; `Provider.open` gives an `Account`, which talks to
one cloud with one person's credentials. The pipeline, codexctl's own, does the rest: journal, keys,
cloud-init, ssh config, readiness, prices shown, retries.

Rules, each of them a test in `codexctl.provision.conformance`:

1. Every mutating call carries the workspace's globally unique id and is idempotent under it.
   `create` twice makes one machine and answers it twice, also when the first answer was lost, also
   from another process. `destroy` of what is not there succeeds.
2. Every resource that `create` makes (machine, registered key, firewall…) is findable by the id
   from the moment it exists: by tag where the cloud has tags at creation, else by name
   (`codexctl-ID`). A crash between two of them leaves nothing that `list_owned` does not show.
3. `list_owned` reads every page or raises `IncompleteList`; never a part, never an empty answer
   in place of an error.
4. Everything the SDK raises is mapped to a class of `codexctl.provision.errors`. Every call ends
   within `CALL_TIMEOUT_S` (`destroy` and `create` may make several).
   A provider does not sleep and does not retry: the pipeline does both, and journals around it.
5. No credential, user data or private key is in a repr, an exception, a log or `vars()` that a
   traceback could show: keep them in `codexctl.secret.Secret`.
6. `Capabilities` are true.
7. SDKs are imported inside the functions that use them.
8. Redirects and page links never carry a credential to another host.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from codexctl.errors import UsageError
from codexctl.provision.errors import Unsupported
from codexctl.secret import Secret

if TYPE_CHECKING:
    import click

CALL_TIMEOUT_S = 30.0
MARKER = "codexctl"
HOURS_PER_MONTH = Decimal(730)
_ID = re.compile(r"[0-9a-f]{32}\Z")

State = Literal["making", "running", "stopping", "stopped", "ending", "failed"]


@dataclass(frozen=True, slots=True)
class Price:
    """What the provider charges; `monthly` is what it says itself, else 730 hours."""

    hourly: Decimal
    monthly: Decimal
    currency: str = "USD"

    @classmethod
    def per_hour(cls, hourly: Decimal | str, currency: str = "USD") -> Price:
        value = Decimal(hourly)
        return cls(value, value * HOURS_PER_MONTH, currency)


FREE = Price(Decimal(0), Decimal(0))


@dataclass(frozen=True, slots=True)
class Region:
    name: str
    title: str = ""
    available: bool = True


@dataclass(frozen=True, slots=True)
class Size:
    """A machine type. `price` is None only where the provider does not tell one."""

    name: str
    cpus: int
    memory_mib: int
    disk_gib: int
    price: Price | None
    regions: tuple[str, ...] = ()
    """Where it can be had; empty when it was asked for one region."""
    architecture: str = "x86_64"


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    title: str = ""
    regions: tuple[str, ...] = ()
    default: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this provider can do; told to the person and relied on by the pipeline."""

    creates: bool
    """Makes machines. False: it adopts one that exists; then nothing is ever destroyed."""
    stops: bool
    """`stop` and `start` work and keep the disk."""
    stop_saves: str
    """What stopping saves, one clause: "nothing: a stopped droplet is billed in full"."""
    host_key: bool
    """User data reaches cloud-init, so that a host key made here can be put there before boot."""
    metadata: bool
    """The user data can be read on the running machine, until its metadata route is closed."""
    ends_itself: bool
    """A machine that shuts itself down is deleted by the cloud, without anybody's credentials."""
    user_data_bytes: int
    """The most user data `create` takes, as bytes before any encoding; 0 where it takes none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `create` will make, fixed and checked; kept in the journal, so a resume makes the same.

    Holds no secret. `extra` is the provider's own (subnet, image id, spot…), texts only.
    """

    region: str
    """For providers without regions: what tells their machines apart (ssh: the destination)."""
    size: str
    image: str
    price: Price | None
    price_stopped: Price | None = None
    """While stopped; None where it cannot be stopped or is not known."""
    user: str | None = None
    """The login user where the machine has one already; None: cloud-init makes one."""
    lines: tuple[str, ...] = ()
    """What else will be made or is worth knowing before the confirmation, one sentence each."""
    extra: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(
            {
                "region": self.region,
                "size": self.size,
                "image": self.image,
                "price": _price_out(self.price),
                "price_stopped": _price_out(self.price_stopped),
                "user": self.user,
                "lines": self.lines,
                "extra": dict(self.extra),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `to_json` wrote, by this version or an older one."""
        value: dict[str, Any] = json.loads(text)
        return cls(
            region=value["region"],
            size=value["size"],
            image=value["image"],
            price=_price_in(value["price"]),
            price_stopped=_price_in(value["price_stopped"]),
            user=value["user"],
            lines=tuple(value["lines"]),
            extra=value["extra"],
        )


def _price_out(price: Price | None) -> list[str] | None:
    return None if price is None else [str(price.hourly), str(price.monthly), price.currency]


def _price_in(value: list[str] | None) -> Price | None:
    return None if value is None else Price(Decimal(value[0]), Decimal(value[1]), value[2])


@dataclass(frozen=True, slots=True)
class Tags:
    """What every resource carries. Values hold only `a-z 0-9 -`, so any cloud takes them."""

    workspace_id: str
    owner: str
    """The home that made it: 16 hex digits; `reap` touches those of its own home only."""
    expires_at: int | None
    """Seconds since the epoch; None: it never expires."""

    def pairs(self) -> dict[str, str]:
        """For clouds whose tags have values."""
        expiry = "never" if self.expires_at is None else str(self.expires_at)
        return {
            MARKER: "1",
            f"{MARKER}-id": self.workspace_id,
            f"{MARKER}-owner": self.owner,
            f"{MARKER}-expires": expiry,
        }

    def flat(self) -> list[str]:
        """For clouds whose tags are words: `codexctl`, `codexctl-id:…`, …"""
        return [
            name if name == MARKER else f"{name}:{value}" for name, value in self.pairs().items()
        ]

    @classmethod
    def parse(cls, pairs: Mapping[str, str]) -> Tags | None:
        """None where the id is missing or malformed. An expiry that does not parse is none."""
        workspace_id = pairs.get(f"{MARKER}-id", "")
        if not is_workspace_id(workspace_id):
            return None
        expiry = pairs.get(f"{MARKER}-expires", "")
        expires_at = int(expiry) if re.fullmatch(r"[0-9]{1,12}", expiry) else None
        return cls(workspace_id, pairs.get(f"{MARKER}-owner", ""), expires_at)

    @classmethod
    def parse_flat(cls, words: Collection[str]) -> Tags | None:
        return cls.parse(dict(word.partition(":")[::2] for word in words))


def is_workspace_id(text: str) -> bool:
    """A workspace id is 32 lower-case hex digits (128 random bits)."""
    return _ID.match(text) is not None


def resource_name(workspace_id: str) -> str:
    """The name of what cannot be tagged (registered keys, security groups)."""
    return f"{MARKER}-{workspace_id}"


@dataclass(frozen=True, slots=True)
class Ref:
    """How the pipeline names a workspace to its provider."""

    workspace_id: str
    region: str
    machine_id: str | None = None
    """The cloud's own id once known; a shortcut, never the only way to find it."""


@dataclass(frozen=True, slots=True)
class Order:
    """Everything `create` needs. `user_data` holds a private host key: never logged or kept."""

    ref: Ref
    name: str
    """The person's name for it: a DNS label; a label in the cloud's console, not an identity."""
    plan: Plan
    tags: Tags
    public_key: str
    """One OpenSSH line, without options; its comment is `codexctl-ID`."""
    user_data: Secret | None
    """cloud-init user data as text; None where `capabilities.user_data_bytes` is 0."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as the provider sees it now."""

    ref: Ref
    state: State
    address: str | None
    """IP or name to connect to; None while it has none."""
    port: int = 22
    user: str | None = None
    """Where it is not the plan's or the person's."""
    proxy_jump: str | None = None
    """As in ssh_config, for machines behind another."""
    host_keys: tuple[str, ...] = ()
    """`TYPE BASE64`, known to the provider by a trusted way; () where the pre-seeded one counts."""
    created_at: int | None = None
    """Seconds since the epoch, by the cloud's clock."""
    detail: str = ""
    """One clause on why it is in this state (spot interruption, failed start)."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Something in the cloud that carries codexctl's marker."""

    kind: str
    """`machine`, or the cloud's own word: `key`, `firewall`, `security group`, `volume`."""
    resource_id: str
    name: str
    region: str
    tags: Tags | None
    """None where it has the marker but no readable id: shown by reap, never destroyed by it."""
    bills: bool
    """It costs money while it exists."""
    created_at: int | None = None
    state: State | None = None
    """For machines."""


class SecretStore(Protocol):
    """Where `codexctl provider login` keeps tokens: the system's keyring, else a private file."""

    def get(self, name: str) -> Secret | None: ...

    def put(self, name: str, value: Secret) -> str:
        """Keep it; answers where, for the person."""
        ...

    def delete(self, name: str) -> bool:
        """Forget it; False where it was not there."""
        ...


class Provider(ABC):
    """What a plugin's `codexctl_provider` hook returns. Nothing here does I/O, except `login`."""

    name: ClassVar[str]
    """A DNS label; what the person types after `codexctl provision`."""
    summary: ClassVar[str]
    """One line for help."""
    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def options(self) -> Sequence[click.Parameter]:
        """click options and arguments of `codexctl provision NAME`, besides the pipeline's own.

        The pipeline's: --name --ttl --idle-stop --max-price --user --sudo --package --setup
        --key-passphrase --template --no-pair --bare --yes --json. Usual here: --region, --size,
        --image.
        """

    @abstractmethod
    def selection(self, options: Mapping[str, Any]) -> dict[str, str]:
        """The options that choose the account (profile, endpoint), as texts and without secrets.

        Kept in the journal: `open` of the same selection, in another process a month later, must
        reach the same account. {} where the environment alone decides.
        """

    @abstractmethod
    def open(self, selection: Mapping[str, str], secrets: SecretStore) -> Account:
        """Find the credentials; CredentialsMissing names where it looked. No call is made yet.

        Used as a context manager by the pipeline, in one thread.
        """

    def login(
        self, selection: Mapping[str, str], secrets: SecretStore, ask: Callable[[str], Secret]
    ) -> list[str]:
        """Ask for a credential, check it and what it may do, keep it; sentences for the person."""
        raise Unsupported(f"{self.name} has no login of its own")

    def policy(self) -> str:
        """The least permissions that this provider needs, in the cloud's own format."""
        raise Unsupported(f"{self.name} has no policy to print")


class Account(ABC):
    """One cloud with one person's credentials. All calls are synchronous; see the rules above."""

    @abstractmethod
    def account_id(self) -> str:
        """A stable id of the account that bills (never a credential). One call; checks them too."""

    @abstractmethod
    def regions(self) -> Sequence[Region]: ...

    @abstractmethod
    def sizes(self, region: str) -> Sequence[Size]:
        """Those that can be had in this region; UnknownChoice for the region."""

    @abstractmethod
    def images(self, region: str) -> Sequence[Image]:
        """What the person may ask for by name; the default first."""

    @abstractmethod
    def plan(self, options: Mapping[str, Any]) -> Plan:
        """Check the options against what the cloud has; UnknownChoice with the nearest names.

        `options` holds a value for each of `Provider.options()` by its click name, and beside them
        the pipeline's own (`user` is None where the person named none). Makes nothing.
        """

    @abstractmethod
    def create(self, order: Order) -> Machine:
        """Make what the plan says, or answer what an earlier call with this id made.

        May return as soon as the machine has an id, without waiting for an address.
        A failure leaves only what carries the id; the pipeline calls `destroy` or `create` again.
        """

    @abstractmethod
    def describe(self, ref: Ref) -> Machine | None:
        """The machine now; None only when the cloud says that there is none (also once deleted)."""

    @abstractmethod
    def list_owned(self, regions: Collection[str]) -> Sequence[Resource]:
        """Everything with codexctl's marker in these regions, of every owner and workspace.

        A cloud that lists an account at once ignores `regions`. What is being deleted and no longer
        bills is left out. Complete, or an error.
        """

    @abstractmethod
    def destroy(self, ref: Ref) -> None:
        """Order the deletion of everything with this id; success where nothing is there.

        What cannot be deleted yet (a group in use by an ending machine) is left without an error:
        the pipeline calls again until `resources` is empty, and only then says destroyed.
        """

    def resources(self, ref: Ref) -> Sequence[Resource]:
        """What `list_owned` shows of this workspace; override where a cheaper call exists."""
        return [
            resource
            for resource in self.list_owned([ref.region])
            if resource.tags is not None and resource.tags.workspace_id == ref.workspace_id
        ]

    def set_expiry(self, ref: Ref, tags: Tags) -> None:
        """Replace the expiry that the resources carry by that of `tags`."""
        raise Unsupported("this provider cannot change an expiry")

    def stop(self, ref: Ref) -> None:
        """Order a stop; harmless when stopped. The pipeline waits with `describe`."""
        raise Unsupported("this provider cannot stop a machine")

    def start(self, ref: Ref) -> None:
        """Order a start; harmless when running. The address may be another one afterwards."""
        raise Unsupported("this provider cannot start a machine")

    def console(self, ref: Ref) -> str | None:
        """The machine's console output, when ssh does not answer; None where the cloud has none."""
        return None

    def close(self) -> None:  # noqa: B027 - most SDKs have nothing to release
        """Release connections. Harmless twice."""

    def __enter__(self) -> Account:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.close()


def require_text(options: Mapping[str, Any], name: str) -> str:
    """The text of an option that must be there; UsageError names it."""
    value = options.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"--{name.replace('_', '-')} is needed")
    return value
