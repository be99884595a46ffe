"""What can go wrong between codexctl and a cloud, as classes that the pipeline acts on.

A provider maps everything its SDK raises to one of these. `retry` says what the pipeline may do:

    never    tell the person; the same call will fail again
    again    the call had no effect; wait (`retry_after_s` or backoff) and make it again
    look     the call may have had its effect: ask `describe` first, then make it again; it is
             idempotent under the workspace's id, so that this never makes a second machine
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Literal

from codexctl.errors import CodexctlError

Retry = Literal["never", "again", "look"]
NEAREST = 3


class ProviderError(CodexctlError):
    """The provider said no in a way that has no class of its own.

    The sentence names the thing and what the cloud said; it never holds a credential or user data.
    `request_id` is the cloud's own, for its support.
    """

    code = "provider"
    retry: ClassVar[Retry] = "never"

    def __init__(self, message: str, *, hint: str = "", request_id: str = "") -> None:
        super().__init__(message, hint=hint)
        self.request_id = request_id


class CredentialsError(ProviderError):
    """The credentials do not do; the subclasses say why."""

    code = "credentials"


class CredentialsMissing(CredentialsError):
    """None were found; the hint names every place that was looked at or the login command."""

    code = "credentials-missing"


class CredentialsWrong(CredentialsError):
    """The cloud does not know them (also when a skewed clock makes signatures invalid: say so)."""

    code = "credentials-wrong"


class CredentialsExpired(CredentialsError):
    """They were good once (SSO sessions, temporary keys)."""

    code = "credentials-expired"


class CredentialsReadOnly(CredentialsError):
    """They may read but not do this; the message names the missing permission or scope."""

    code = "credentials-read-only"


class QuotaReached(ProviderError):
    """A limit of the account: machines, vCPUs, keys. The hint says where to have it raised."""

    code = "quota"


class PaymentRequired(ProviderError):
    """The account cannot buy until its owner has paid or verified."""

    code = "payment"


class NoCapacity(ProviderError):
    """The cloud has none of this size here now; the hint names another size or region to try."""

    code = "no-capacity"


class NameTaken(ProviderError):
    """Something that is not this workspace has the name or key already."""

    code = "name-taken"


class UserDataTooLarge(ProviderError):
    """The rendered user data is beyond what this cloud takes."""

    code = "user-data-too-large"


class Unsupported(ProviderError):
    """This provider cannot do that at all (its capabilities say so)."""

    code = "unsupported"
    exit_code = 2


class UnknownChoice(ProviderError):
    """A region, size or image that does not exist, or not there."""

    code = "unknown-choice"
    exit_code = 2

    def __init__(
        self, kind: str, value: str, known: Iterable[str], *, elsewhere: Iterable[str] = ()
    ) -> None:
        """`known`: the names that would do; `elsewhere`: the regions where `value` exists."""
        choices, places = sorted(known), sorted(elsewhere)
        self.kind, self.value, self.elsewhere = kind, value, tuple(places)
        self.nearest = tuple(difflib.get_close_matches(value, choices, NEAREST, cutoff=0.4))
        if places:
            message = f"{kind} {value} is not available here"
            hint = f"it exists in: {', '.join(places)}"
            if self.nearest:
                hint += f"; here, the nearest are: {', '.join(self.nearest)}"
        else:
            message = f"there is no {kind} {value}"
            names = self.nearest or tuple(choices[:NEAREST])
            lead = "the nearest are" if self.nearest else "for example"
            hint = f"{lead}: {', '.join(names)}" if names else ""
        super().__init__(message, hint=hint)


class RateLimited(ProviderError):
    """The cloud counts calls; this one was not carried out."""

    code = "rate-limited"
    retry = "again"

    def __init__(
        self, message: str, *, retry_after_s: float | None, hint: str = "", request_id: str = ""
    ) -> None:
        """`retry_after_s`: seconds from now as the cloud says, None when it does not."""
        super().__init__(message, hint=hint, request_id=request_id)
        self.retry_after_s = retry_after_s


class ProviderUnreachable(ProviderError):
    """The call certainly did not reach the cloud (no name, connection refused, TLS)."""

    code = "provider-unreachable"
    exit_code = 255
    retry = "again"


class OutcomeUnknown(ProviderError):
    """A mutating call without a usable answer: timeout, connection lost, 5xx, a body that does not
    parse. The thing may exist. Reading calls raise it too, where it is simply made again."""

    code = "outcome-unknown"
    exit_code = 255
    retry = "look"


class IncompleteList(ProviderError):
    """A page of a list failed: what was read so far is not returned, or a machine may be missed."""

    code = "incomplete-list"
    retry = "again"
