"""The rules of the provider contract as tests: subclass `ProviderConformance`, override some hooks.

    class TestAcme(ProviderConformance):
        def provider(self) -> Provider: return AcmeProvider()
        def options(self) -> dict[str, Any]: return {"region": "north", "size": "small"}
        def provoke(self, fault): return acme_server.fault(fault)

It wants a provider that talks to something which answers as its cloud does: its emulator, or
a server of the test's own. `open` is called anew wherever another process would be. A fault that
`provoke` cannot bring about is skipped, visibly. Needs pytest.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import click
import pytest

from codexctl.provision import errors
from codexctl.provision.model import (
    FREE,
    Account,
    Machine,
    Order,
    Plan,
    Provider,
    Ref,
    Resource,
    Tags,
    resource_name,
)
from codexctl.provision.plugins import check_provider
from codexctl.secret import Secret

Fault = Literal[
    "missing",  # no credentials anywhere
    "wrong",  # the cloud does not know them
    "expired",
    "read-only",  # reading works, creating is refused
    "quota",
    "payment",
    "no-capacity",
    "rate-limit",  # every call is refused, with a time to wait where the cloud tells one
    "unreachable",  # nothing listens
    "lost-answer",  # the machine is made, the answer to that call never comes
    "server-error",  # reading calls are answered with a 5xx
    "list-page",  # the second page of a list fails; or the only one
]
CREDENTIAL_FAULTS: Mapping[Fault, type[errors.CredentialsError]] = {
    "missing": errors.CredentialsMissing,
    "wrong": errors.CredentialsWrong,
    "expired": errors.CredentialsExpired,
}
CREATE_FAULTS: Mapping[Fault, type[errors.ProviderError]] = {
    "read-only": errors.CredentialsReadOnly,
    "quota": errors.QuotaReached,
    "payment": errors.PaymentRequired,
    "no-capacity": errors.NoCapacity,
}
PIPELINE_OPTIONS = frozenset(
    (
        *("name", "ttl", "idle_stop", "max_price", "user", "sudo", "package", "setup", "template"),
        *("key_passphrase", "agent", "no_pair", "bare", "relay", "yes", "as_json", "json", "help"),
        *("resume",),
    )
)
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPeIkp6PtKTP7MMWhZ8CEKnLtBRWt7RV7rb2WHPkLAvH"
SECRET_IN_USER_DATA = "conformance-host-key-5f0c"  # noqa: S105 - what must not be shown
OWNER = "00c0ffee00c0ffee"
PATIENCE_S = 30.0


class MemorySecrets:
    """A secret store for tests."""

    def __init__(self) -> None:
        self._kept: dict[str, Secret] = {}

    def get(self, name: str) -> Secret | None:
        return self._kept.get(name)

    def put(self, name: str, value: Secret) -> str:
        self._kept[name] = value
        return "memory"

    def delete(self, name: str) -> bool:
        return self._kept.pop(name, None) is not None


class ProviderConformance:
    """Every rule of `codexctl.provision.model`. Override the first five methods as needed."""

    many = 3
    """How many machines `list_owned` is tried with; more than a page of the cloud's is best."""

    def provider(self) -> Provider:
        """The provider that is tried: the one method that every subclass writes itself."""
        raise NotImplementedError("return the provider")

    def options(self) -> dict[str, Any]:
        """Valid options by click name; the others get their defaults."""
        return {}

    def secret_texts(self) -> list[str]:
        """Credentials that must never be shown."""
        return []

    def provoke(self, fault: Fault) -> AbstractContextManager[None] | None:
        """Within the context the fault happens. None: it cannot be brought about."""
        return None

    def settle(self) -> None:
        """Called between looks at a changing machine: let the emulator's time pass."""
        time.sleep(0.01)

    # What the tests below share.

    def all_options(self) -> dict[str, Any]:
        command = click.Command("provision", params=list(self.provider().options()))
        context = command.make_context("provision", [], resilient_parsing=True)
        return {**context.params, **self.options()}

    def open(self) -> Account:
        provider = self.provider()
        return provider.open(provider.selection(self.all_options()), MemorySecrets())

    def order(self, account: Account, *, user_data: str | None = None) -> Order:
        plan = account.plan(self.all_options())
        workspace_id = secrets.token_hex(16)
        text = user_data or f"#cloud-config\n# {SECRET_IN_USER_DATA}\n"
        takes = self.provider().capabilities.user_data_bytes > 0
        return Order(
            ref=Ref(workspace_id, plan.region),
            name=f"conformance-{workspace_id[:6]}",
            plan=plan,
            tags=Tags(workspace_id, OWNER, int(time.time()) + 3600),
            public_key=f"{PUBLIC_KEY} {resource_name(workspace_id)}",
            user_data=Secret(text) if takes else None,
        )

    @contextmanager
    def made(self) -> Iterator[tuple[Order, Machine]]:
        """A machine that is destroyed afterwards."""
        with self.open() as account:
            order = self.order(account)
            try:
                yield order, account.create(order)
            finally:
                self.clear(order)

    def clear(self, order: Order) -> None:
        """Destroy until nothing is left, as the pipeline does."""
        end = time.monotonic() + PATIENCE_S
        with self.open() as account:
            while True:
                account.destroy(order.ref)
                if not account.resources(order.ref):
                    return
                assert time.monotonic() < end, "destroy does not come to an end"
                self.settle()

    def until(self, account: Account, order: Order, state: str) -> Machine:
        end = time.monotonic() + PATIENCE_S
        while True:
            machine = account.describe(order.ref)
            assert machine is not None, "describe lost a machine that was made"
            if machine.state == state and (state != "running" or machine.address):
                return machine
            assert time.monotonic() < end, f"it stays {machine.state}, not {state}"
            self.settle()

    def fault(self, fault: Fault) -> AbstractContextManager[None]:
        context = self.provoke(fault)
        if context is None:
            pytest.skip(f"{fault} cannot be brought about here")
        return context

    # Rule 0: what it says of itself.

    def test_says_what_it_is_without_io(self) -> None:
        check_provider(self.provider())

    def test_options_do_not_shadow_the_pipelines(self) -> None:
        names = [parameter.name for parameter in self.provider().options()]
        assert len(names) == len(set(names))
        assert not PIPELINE_OPTIONS.intersection(name or "" for name in names)
        for parameter in self.provider().options():
            if isinstance(parameter, click.Option):
                assert parameter.help, f"--{parameter.name} has no help"

    def test_the_selection_reaches_the_same_account_again(self) -> None:
        provider = self.provider()
        selection = provider.selection(self.all_options())
        assert all(isinstance(value, str) for value in selection.values())
        self.assert_hidden(str(selection))
        store = MemorySecrets()
        with provider.open(selection, store) as one, provider.open(selection, store) as other:
            assert one.account_id() == other.account_id()

    def test_the_plan_is_complete_and_survives_the_journal(self) -> None:
        with self.open() as account:
            plan = account.plan(self.all_options())
        assert Plan.from_json(plan.to_json()) == plan
        assert plan.region
        if self.provider().capabilities.creates:
            assert plan.price is not None
            assert plan.price.hourly > 0
            assert plan.price.monthly >= plan.price.hourly
        else:
            assert plan.price in (None, FREE)

    @pytest.mark.parametrize("kind", ["region", "size", "image"])
    def test_an_unknown_choice_names_the_nearest(self, kind: str) -> None:
        options = self.all_options()
        if kind not in options or not self.provider().capabilities.creates:
            pytest.skip(f"it has no --{kind}")
        options[kind] = f"{options[kind] or 'x'}-nowhere"
        with self.open() as account, pytest.raises(errors.UnknownChoice) as caught:
            account.plan(options)
        assert caught.value.hint
        assert caught.value.exit_code == 2

    def test_regions_sizes_and_images_agree_with_the_plan(self) -> None:
        if not self.provider().capabilities.creates:
            pytest.skip("it makes no machines")
        with self.open() as account:
            plan = account.plan(self.all_options())
            assert plan.region in {region.name for region in account.regions()}
            sizes = {size.name: size for size in account.sizes(plan.region)}
            assert plan.size in sizes
            assert sizes[plan.size].price == plan.price
            assert list(account.images(plan.region))

    # Rules 1 and 2: one id, one machine, everything findable by it.

    def test_create_twice_makes_one_machine(self) -> None:
        with self.made() as (order, machine):
            with self.open() as again:
                assert again.create(order).ref.machine_id == machine.ref.machine_id
                assert len(self.machines(again, order)) == 1
            assert machine.ref.workspace_id == order.ref.workspace_id
            assert machine.ref.machine_id

    def test_a_lost_answer_is_adopted(self) -> None:
        with self.open() as account:
            order = self.order(account)
            try:
                with self.fault("lost-answer"), pytest.raises(errors.ProviderError) as caught:
                    account.create(order)
                assert caught.value.retry == "look"
                with self.open() as again:
                    assert again.describe(order.ref) is not None
                    again.create(order)
                    assert len(self.machines(again, order)) == 1
            finally:
                self.clear(order)

    def test_everything_carries_the_tags(self) -> None:
        with self.made() as (order, _), self.open() as account:
            found = account.resources(order.ref)
            assert found
            for resource in found:
                assert resource.tags is not None
                assert resource.tags.workspace_id == order.ref.workspace_id
            machine = self.machines(account, order)[0]
            assert machine.tags == order.tags
            assert machine.bills == self.provider().capabilities.creates

    def test_the_expiry_can_be_changed(self) -> None:
        with self.made() as (order, _), self.open() as account:
            tags = Tags(order.ref.workspace_id, OWNER, int(time.time()) + 7200)
            account.set_expiry(order.ref, tags)
            account.set_expiry(order.ref, tags)
            assert self.machines(account, order)[0].tags == tags

    def test_it_comes_to_run_and_has_an_address(self) -> None:
        with self.made() as (order, _), self.open() as account:
            assert self.until(account, order, "running").ref.region == order.ref.region

    def test_what_is_not_there_is_none_and_destroyed(self) -> None:
        with self.open() as account:
            order = self.order(account)
            assert account.describe(order.ref) is None
            assert list(account.resources(order.ref)) == []
            account.destroy(order.ref)

    def test_destroy_twice_leaves_nothing(self) -> None:
        with self.made() as (order, _):
            self.clear(order)
            with self.open() as account:
                assert account.describe(order.ref) is None
                account.destroy(order.ref)
                assert list(account.resources(order.ref)) == []

    def test_destroy_touches_nothing_else(self) -> None:
        if not self.provider().capabilities.creates:
            pytest.skip("one machine, one workspace")
        with self.made() as (order, _), self.made() as (other, _):
            self.clear(order)
            with self.open() as account:
                assert self.machines(account, other)

    # Rule 3: lists are complete or fail.

    def test_a_list_is_complete(self) -> None:
        if not self.provider().capabilities.creates:
            pytest.skip("it makes no machines")
        orders: list[Order] = []
        try:
            with self.open() as account:
                for _ in range(self.many):
                    orders.append(self.order(account))
                    account.create(orders[-1])
                listed = account.list_owned({order.ref.region for order in orders})
                ids = {r.tags.workspace_id for r in listed if r.tags and r.kind == "machine"}
                assert {order.ref.workspace_id for order in orders} <= ids
        finally:
            for order in orders:
                self.clear(order)

    @pytest.mark.parametrize("fault", ["list-page", "server-error", "unreachable", "wrong"])
    def test_a_list_that_may_be_incomplete_is_an_error(self, fault: Fault) -> None:
        with (
            self.made() as (order, _),
            self.fault(fault),
            pytest.raises(errors.ProviderError),
            self.open() as account,
        ):
            account.list_owned([order.ref.region])

    # Rule 4: errors.

    @pytest.mark.parametrize("fault", sorted(CREDENTIAL_FAULTS))
    def test_credentials_that_do_not_do_are_named(self, fault: Fault) -> None:
        expected = pytest.raises(CREDENTIAL_FAULTS[fault])
        with self.fault(fault), expected as caught, self.open() as account:
            account.account_id()
        assert caught.value.hint, "it says what to do"
        self.assert_hidden(str(caught.value) + caught.value.hint + repr(caught.value))

    @pytest.mark.parametrize("fault", sorted(CREATE_FAULTS))
    def test_a_refused_order_is_named_and_leaves_nothing(self, fault: Fault) -> None:
        with self.open() as account:
            order = self.order(account)
            try:
                with self.fault(fault), pytest.raises(CREATE_FAULTS[fault]) as caught:
                    account.create(order)
                assert caught.value.hint
                assert not self.machines(account, order)
            finally:
                self.clear(order)

    def test_a_rate_limit_is_told(self) -> None:
        with self.open() as account:
            order = self.order(account)
            with self.fault("rate-limit"), pytest.raises(errors.RateLimited):
                account.describe(order.ref)

    def test_nobody_there_is_told(self) -> None:
        expected = pytest.raises(errors.ProviderError)
        with self.fault("unreachable"), expected as caught, self.open() as account:
            account.plan(self.all_options())
        assert caught.value.retry in ("again", "look")

    # Rule 5: secrets.

    def test_no_secret_is_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        with (
            caplog.at_level(logging.DEBUG),
            self.made() as (order, machine),
            self.open() as account,
        ):
            account.describe(order.ref)
            inside = getattr(account, "__dict__", {})
            self.assert_hidden(" ".join(map(repr, (account, inside, order, machine))))
        self.assert_hidden(caplog.text)

    def assert_hidden(self, text: str) -> None:
        for secret in (*self.secret_texts(), SECRET_IN_USER_DATA):
            assert secret not in text, "a secret is shown"

    # Rule 6: capabilities are true.

    def test_stopping_is_as_it_says(self) -> None:
        with self.made() as (order, _), self.open() as account:
            if not self.provider().capabilities.stops:
                for call in (account.stop, account.start):
                    with pytest.raises(errors.Unsupported):
                        call(order.ref)
                return
            self.until(account, order, "running")
            account.stop(order.ref)
            self.until(account, order, "stopped")
            account.stop(order.ref)
            account.start(order.ref)
            self.until(account, order, "running")

    def test_user_data_beyond_the_limit_is_refused(self) -> None:
        limit = self.provider().capabilities.user_data_bytes
        if not limit:
            pytest.skip("it takes no user data")
        with self.open() as account:
            order = self.order(account, user_data="#cloud-config\n" + "#" * limit)
            try:
                with pytest.raises(errors.UserDataTooLarge):
                    account.create(order)
                assert not self.machines(account, order)
            finally:
                self.clear(order)

    def machines(self, account: Account, order: Order) -> list[Resource]:
        return [found for found in account.resources(order.ref) if found.kind == "machine"]
