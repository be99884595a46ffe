"""boto3 as the AWS provider uses it: every call once, with a timeout, and its errors translated.

A file beside the provider, because two families of exceptions (ClientError for what AWS answered,
BotoCoreError for everything else) and about a hundred error codes become the few classes that the
pipeline acts on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from codexctl.errors import UsageError
from codexctl.provision.errors import (
    CredentialsError,
    CredentialsExpired,
    CredentialsMissing,
    CredentialsReadOnly,
    CredentialsWrong,
    IncompleteList,
    NoCapacity,
    OutcomeUnknown,
    PaymentRequired,
    ProviderError,
    ProviderUnreachable,
    QuotaReached,
    RateLimited,
    UnknownChoice,
    UserDataTooLarge,
)

Body = dict[str, Any]

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 25
SAID_CHARS = 300
"""How much of AWS's own sentence is repeated."""

_MISSING = {"NoCredentialsError", "PartialCredentialsError"}
_SIGNED_OUT = {
    "SSOError",
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
    "TokenRetrievalError",
    "LoginRefreshRequired",
    "LoginTokenLoadError",
}
_NEVER_SENT = {
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "ProxyConnectionError",
    "SSLError",
}
_PERHAPS_DONE = {
    "ConnectionClosedError",
    "ConnectionError",
    "HTTPClientError",
    "ReadTimeoutError",
    "ResponseStreamingError",
}
_UNKNOWN_KEYS = {
    "AuthFailure",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_QUOTA = {
    "InstanceLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "SecurityGroupLimitExceeded",
    "VcpuLimitExceeded",
    "VolumeLimitExceeded",
}
_CAPACITY = {
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "SpotMaxPriceTooLow",
    "Unsupported",
}
_UNPAID = {"Blocked", "OptInRequired", "PendingVerification"}
_THROTTLED = {
    "EC2ThrottledException",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_FAULTS = {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"}
_SERVICES = {"GetParameter": "ssm", "GetProducts": "pricing", "GetCallerIdentity": "sts"}


class Answered(ProviderError):
    """AWS said no with a code that the caller may know what to do about."""

    def __init__(self, code: str, message: str, *, request_id: str = "") -> None:
        super().__init__(message, request_id=request_id)
        self.aws_code = code


class Busy(ProviderError):
    """The machine is changing its state; the call had no effect."""

    code = "busy"
    retry = "again"


@functools.cache
def _loader() -> Any:
    """One for all sessions: reading EC2's description is most of the cost of a client."""
    from botocore.loaders import create_loader

    return create_loader()


class Cloud:
    """One set of credentials, with a client for each service and region that is used."""

    def __init__(self, profile: str, endpoint: str) -> None:
        """CredentialsMissing, or UnknownChoice for the profile. Reads files, calls nobody."""
        import logging

        import boto3
        import botocore.exceptions
        import botocore.session

        # Its debug records hold whole requests: user data with the host key in it.
        for name in ("botocore", "boto3"):
            logging.getLogger(name).setLevel(logging.INFO)
        self._endpoint = endpoint or None
        self._clients: dict[tuple[str, str], Any] = {}
        core = botocore.session.Session(profile=profile or None)
        core.register_component("data_loader", _loader())
        self._core = core
        try:
            self._session = boto3.Session(botocore_session=core)
            found = self._session.get_credentials()
        except botocore.exceptions.ProfileNotFound:
            if not core.available_profiles:
                raise _no_credentials(profile) from None
            raise UnknownChoice("profile", profile, core.available_profiles) from None
        except botocore.exceptions.BotoCoreError as error:
            raise _not_answered(error, profile) from None
        if found is None:
            raise _no_credentials(profile)
        self._profile = profile

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    @property
    def region(self) -> str:
        """The region of the profile or the environment; empty without one."""
        return self._session.region_name or ""

    def region_titles(self) -> dict[str, str]:
        """Every region that this version of the SDK knows, with its title."""
        partitions = self._core.get_data("endpoints")["partitions"]
        return {
            name: region["description"]
            for partition in partitions
            for name, region in partition["regions"].items()
        }

    def known_sizes(self, region: str) -> list[str]:
        """Every instance type that this version of the SDK knows, wherever it exists."""
        model = self._client("ec2", region).meta.service_model
        return list(model.shape_for("InstanceType").enum)

    def _client(self, service: str, region: str) -> Any:
        from botocore.config import Config

        key = (service, region)
        if key not in self._clients:
            config = Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                # The pipeline tries again, with its journal; the SDK does not.
                retries={"total_max_attempts": 1, "mode": "standard"},
                user_agent_extra="codexctl",
            )
            self._clients[key] = self._session.client(
                service, region_name=region, endpoint_url=self._endpoint, config=config
            )
        return self._clients[key]

    def call(self, region: str, operation: str, *, service: str = "ec2", **params: Any) -> Body:
        """One call; what fails is a ProviderError."""
        with self._mapped(region):
            answer: Body = getattr(self._client(service, region), operation)(**params)
            return answer

    def ask(self, region: str, operation: str, member: str, **params: Any) -> Any:
        """One call, and the member of its answer that matters; OutcomeUnknown without it."""
        answer = self.call(region, operation, **params)
        if answer.get(member) is None:
            raise OutcomeUnknown(f"AWS's answer to {operation} in {region} has no {member}")
        return answer[member]

    def pages(
        self, region: str, operation: str, member: str, *, service: str = "ec2", **params: Any
    ) -> list[Any]:
        """Every item of every page; IncompleteList when a later page does not come."""
        items: list[Any] = []
        try:
            with self._mapped(region):
                client = self._client(service, region)
                for page in client.get_paginator(operation).paginate(**params):
                    items += page[member]
        except ProviderError as error:
            if not items and not isinstance(error, OutcomeUnknown):
                raise
            raise IncompleteList(
                f"AWS did not list all {member} of {region}: {error}", request_id=error.request_id
            ) from None
        return items

    @contextmanager
    def _mapped(self, region: str) -> Iterator[None]:
        """What the SDK raises, as a ProviderError. Not chained: it can hold the request."""
        import botocore.exceptions
        import botocore.parsers

        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise _answered(error, region) from None
        except botocore.exceptions.BotoCoreError as error:
            raise _not_answered(error, self._profile) from None
        except (botocore.parsers.ResponseParserError, LookupError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise OutcomeUnknown(f"AWS's answer from {region} makes no sense: {kind}") from None


def _no_credentials(profile: str) -> CredentialsMissing:
    where = f"the profile {profile}" if profile else "the environment, ~/.aws or an instance role"
    return CredentialsMissing(
        f"there are no AWS credentials in {where}",
        hint="sign in with: aws configure sso, or name another with --profile",
    )


def _not_answered(error: Exception, profile: str) -> ProviderError:
    """The class of a BotoCoreError, by its own and its bases' names."""
    names = {kind.__name__ for kind in type(error).__mro__}
    kind = type(error).__name__
    login = f"aws sso login{' --profile ' + profile if profile else ''}"
    if names & _MISSING:
        return _no_credentials(profile)
    if names & _SIGNED_OUT:
        return CredentialsExpired("the AWS sign-in session has ended", hint=f"run: {login}")
    if "CredentialRetrievalError" in names:
        return CredentialsError(
            "the AWS credentials of this profile cannot be obtained", hint=f"try: {login}"
        )
    if "NoRegionError" in names:
        return no_region()
    if names & _NEVER_SENT:
        return ProviderUnreachable(
            f"cannot reach AWS: {kind}",
            hint="check the region's name and the network, and HTTPS_PROXY if there is a proxy",
        )
    if names & _PERHAPS_DONE:
        return OutcomeUnknown(f"AWS did not answer: {kind}")
    if "PaginationError" in names:
        return IncompleteList("AWS's pages lead back to where they began")
    return ProviderError(f"the AWS SDK refused: {kind}: {str(error)[:SAID_CHARS]}")


def no_region() -> ProviderError:
    return UnknownRegion()


class UnknownRegion(ProviderError, UsageError):
    """Neither an option nor the profile nor the environment names a region."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__("--region is needed", hint="for example --region eu-west-2")


def _answered(error: Any, region: str) -> ProviderError:
    """The class of a ClientError, by its code."""
    body: Mapping[str, Any] = error.response.get("Error", {})
    meta: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    code, said = str(body.get("Code", "")), str(body.get("Message", ""))[:SAID_CHARS]
    request_id, status = str(meta.get("RequestId", "")), int(meta.get("HTTPStatusCode", 0))
    service = _SERVICES.get(error.operation_name, "ec2")
    action = f"{service}:{error.operation_name}"
    sentence = f"AWS answered {code} to {action} in {region}: {said}"
    if code in _UNKNOWN_KEYS:
        return CredentialsWrong(
            f"AWS does not accept these credentials in {region}: {code}",
            hint="check the keys or the profile, that this region is enabled for the account, "
            "and that this machine's clock is right",
            request_id=request_id,
        )
    if code in _EXPIRED:
        return CredentialsExpired(
            "the AWS credentials have expired",
            hint="run: aws sso login, or get new ones; a wrong clock looks the same",
            request_id=request_id,
        )
    if code in _DENIED:
        return CredentialsReadOnly(
            f"the AWS credentials may not {action} in {region}",
            hint="what is needed: codexctl provider policy aws",
            request_id=request_id,
        )
    if code in _QUOTA or (code.endswith("LimitExceeded") and code not in _THROTTLED):
        return QuotaReached(
            sentence,
            hint="destroy a machine, take a smaller --size or another --region, or ask for more: "
            f"https://{region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas",
            request_id=request_id,
        )
    if code in _CAPACITY:
        return NoCapacity(
            sentence,
            hint="try a --subnet in another availability zone, another --size or --region, "
            "or without --spot",
            request_id=request_id,
        )
    if code in _UNPAID:
        return PaymentRequired(
            sentence, hint="see https://console.aws.amazon.com/billing", request_id=request_id
        )
    if code in _THROTTLED or status == 429:
        return RateLimited(
            f"AWS counts calls, and these were too many in {region}",
            retry_after_s=None,
            hint="wait a minute; other programs of this account count as well",
            request_id=request_id,
        )
    if code in _FAULTS or status >= 500:
        return OutcomeUnknown(sentence, request_id=request_id)
    if "User data is limited" in said:
        return UserDataTooLarge(sentence, request_id=request_id)
    if code in ("IncorrectInstanceState", "IncorrectState"):
        return Busy(sentence, request_id=request_id)
    return Answered(code, sentence, request_id=request_id)
