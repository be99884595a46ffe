"""The life of a workspace on DigitalOcean, and what is checked before one is ordered."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from typing import Any

import pytest
from codexctl_plugins import _digitalocean_values as values
from codexctl_plugins.digitalocean import DigitalOcean
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import UsageError
from codexctl.provision.errors import ProviderError, UnknownChoice, UserDataTooLarge
from codexctl.provision.model import Account, Plan, Price, Ref, Tags
from codexctl.secret import Secret
from tests.clouds.conftest import OWNER, USER_DATA, OpenAccount, Store, new_order
from tests.clouds.digitalocean_catalogue import CODEX_UNIVERSAL, image
from tests.clouds.digitalocean_cloud import READ_ONLY_TOKEN
from tests.clouds.fake_digitalocean import FakeDigitalOcean

NOTHING = {"droplets": 0, "keys": 0, "firewalls": 0, "tags of workspaces": 0}
ONE = {"droplets": 1, "keys": 1, "firewalls": 1, "tags of workspaces": 1}


def options(**changes: Any) -> dict[str, Any]:
    chosen = {"region": "lon1", "size": "s-2vcpu-4gb", "image": None, "ssh_from": ()}
    return chosen | {"context": None} | changes


def plan(account: Account, **changes: Any) -> Plan:
    return account.plan(options(**changes))


def test_a_workspace_is_made_found_stopped_started_and_gone(
    fake: FakeDigitalOcean, account: Account
) -> None:
    order = new_order(plan(account))
    made = account.create(order)
    assert (made.state, made.address) == ("making", None)
    account.describe(made.ref)
    running = account.describe(made.ref)
    assert running is not None
    assert (running.state, running.address) == ("running", "203.0.113.10")
    assert fake.exists() == ONE
    account.stop(made.ref)
    account.stop(made.ref)
    stopped = account.describe(made.ref)
    assert stopped is not None
    assert stopped.state == "stopped"
    assert fake.hourly_bill() == 0.03571
    account.start(made.ref)
    started = account.describe(Ref(order.ref.workspace_id, "lon1"))
    assert started is not None
    assert started.state == "running"
    account.destroy(made.ref)
    assert account.resources(made.ref) == []
    assert account.describe(made.ref) is None
    assert fake.exists() == NOTHING
    account.destroy(made.ref)


def test_the_droplet_is_what_was_ordered(fake: FakeDigitalOcean, account: Account) -> None:
    order = new_order(plan(account, ssh_from=("203.0.113.7", "2001:db8::/32")))
    account.create(order)
    (droplet,) = fake.droplets.values()
    assert droplet["name"] == "api-work"
    assert droplet["size_slug"] == "s-2vcpu-4gb"
    assert droplet["region"]["slug"] == "lon1"
    assert set(droplet["tags"]) == set(order.tags.flat())
    assert fake.user_data[droplet["id"]] == USER_DATA
    (key,) = fake.keys.values()
    assert key["public_key"] == order.public_key
    (wall,) = fake.firewalls.values()
    assert wall["tags"] == [f"codexctl-id:{order.ref.workspace_id}"]
    (rule,) = wall["inbound_rules"]
    assert (rule["protocol"], rule["ports"]) == ("tcp", "22")
    assert rule["sources"]["addresses"] == ["203.0.113.7/32", "2001:db8::/32"]


def test_a_provision_makes_the_fewest_calls(fake: FakeDigitalOcean, account: Account) -> None:
    made = account.create(new_order(plan(account)))
    account.describe(made.ref)
    asked = [f"{call.method} {call.path.removeprefix('/v2/')}" for call in fake.calls]
    assert asked == [
        "GET sizes",
        "GET images",
        "GET droplets",
        "POST tags",
        "POST firewalls",
        "POST account/keys",
        "POST droplets",
        f"GET droplets/{made.ref.machine_id}",
    ]


def test_create_again_answers_the_same_machine(
    fake: FakeDigitalOcean, open_account: OpenAccount
) -> None:
    first = open_account()
    order = new_order(plan(first))
    made = first.create(order)
    assert open_account().create(order).ref == made.ref
    assert fake.exists() == ONE


def test_a_key_that_the_person_has_registered_is_used_and_left_alone(
    fake: FakeDigitalOcean, account: Account
) -> None:
    order = new_order(plan(account))
    words = order.public_key.split()
    theirs = {"name": "my laptop", "public_key": f"{words[0]} {words[1]} me@laptop"}
    assert fake.create_key({}, theirs).status == 201
    made = account.create(order)
    account.destroy(made.ref)
    assert [key["name"] for key in fake.keys.values()] == ["my laptop"]


def test_everything_with_the_marker_is_listed_with_its_owner(
    fake: FakeDigitalOcean, account: Account
) -> None:
    order = new_order(plan(account))
    account.create(order)
    fake.create_key({}, {"name": "codexctl-odd", "public_key": new_order(order.plan).public_key})
    listed = account.list_owned([])
    assert {(thing.kind, thing.bills) for thing in listed if thing.tags == order.tags} == {
        ("machine", True),
        ("firewall", False),
        ("key", False),
        ("tag", False),
    }
    assert [thing.name for thing in listed if thing.tags is None] == ["codexctl-odd"]


def test_what_an_earlier_crash_left_is_listed_by_name_and_destroyed(
    fake: FakeDigitalOcean, account: Account
) -> None:
    order = new_order(plan(account))
    account.create(order)
    fake.droplets.clear()
    left = account.resources(order.ref)
    assert {thing.kind for thing in left} == {"firewall", "key", "tag"}
    owners = {thing.tags.owner for thing in left if thing.tags and thing.kind != "tag"}
    assert owners == {OWNER}
    account.destroy(order.ref)
    assert fake.exists() == NOTHING


def test_a_droplet_that_lingers_stays_listed_until_it_is_gone(
    fake: FakeDigitalOcean, account: Account
) -> None:
    fake.linger_polls = 3
    made = account.create(new_order(plan(account)))
    rounds = 0
    while account.resources(made.ref):
        account.destroy(made.ref)
        rounds += 1
        assert rounds < 9
    assert fake.exists() == NOTHING
    lists = fake.count("GET", "/v2/account/keys")
    assert lists < 10, "keys may be listed ten times a minute"


def test_two_workspaces_do_not_touch_each_other(fake: FakeDigitalOcean, account: Account) -> None:
    first, second = new_order(plan(account)), new_order(plan(account))
    account.create(first)
    kept = account.create(second)
    account.destroy(first.ref)
    assert fake.exists() == ONE
    found = account.describe(second.ref)
    assert found is not None
    assert found.ref == kept.ref
    (droplet,) = fake.droplets.values()
    assert set(droplet["tags"]) == set(second.tags.flat()), "the expiry they share must survive"


def test_a_machine_id_of_another_workspace_is_not_believed(
    fake: FakeDigitalOcean, account: Account
) -> None:
    other = account.create(new_order(plan(account)))
    assert account.describe(Ref("0" * 32, "lon1", other.ref.machine_id)) is None


def test_an_expiry_is_replaced(fake: FakeDigitalOcean, account: Account) -> None:
    order = new_order(plan(account))
    account.create(order)
    later = Tags(order.ref.workspace_id, OWNER, 1_950_000_000)
    account.set_expiry(order.ref, later)
    (machine,) = (thing for thing in account.resources(order.ref) if thing.kind == "machine")
    assert machine.tags == later
    assert "codexctl-expires:1900000000" not in fake.tags


def test_a_droplet_that_did_not_start_is_told_from_one_that_is_slow(
    fake: FakeDigitalOcean, account: Account
) -> None:
    fake.boot_polls = 10_000
    order = new_order(plan(account))
    fake.clock = lambda: 1_700_000_000.0
    made = account.create(order)
    slow = account.describe(made.ref)
    assert slow is not None
    assert slow.state == "making"
    fake.boot_error = True
    account.describe(made.ref)
    broken = account.describe(made.ref)
    assert broken is not None
    assert (broken.state, broken.detail) == ("failed", "DigitalOcean could not start the droplet")


def test_a_machine_that_ignores_a_shutdown_is_switched_off(
    fake: FakeDigitalOcean, account: Account
) -> None:
    made = account.create(new_order(plan(account)))
    account.describe(made.ref)
    account.stop(made.ref)
    (droplet,) = fake.droplets.values()
    droplet["status"] = "active"
    fake.finish(droplet["id"], "shutdown", "errored")
    account.stop(made.ref)
    assert [action["type"] for action in fake.actions.values()][-1] == "power_off"


def test_codex_universal_is_the_image_where_it_is_listed(
    fake: FakeDigitalOcean, account: Account, open_account: OpenAccount
) -> None:
    without = plan(account)
    assert without.image == "ubuntu-24-04-x64"
    assert any("no Codex Universal" in line for line in without.lines)
    fake.images.append(image(*CODEX_UNIVERSAL))
    listed = open_account()
    with_codex = plan(listed)
    assert with_codex.image == "codex-universal"
    assert len(with_codex.lines) == 1
    assert listed.images("lon1")[0].name == "codex-universal"


def test_images_are_asked_for_by_slug_or_number(account: Account, fake: FakeDigitalOcean) -> None:
    assert plan(account, image="debian-12-x64").image == "debian-12-x64"
    mine = plan(account, image="106")
    account.create(new_order(mine))
    (droplet,) = fake.droplets.values()
    assert droplet["image"]["name"] == "my-snapshot"
    assert plan(account, image="docker-20-04").image == "docker-20-04"


def test_prices_are_those_of_the_cloud(account: Account) -> None:
    price = Price(Decimal("0.03571"), Decimal("24"))
    made = plan(account)
    assert made.price == made.price_stopped == price
    sizes = {size.name: size for size in account.sizes("nyc3")}
    assert sizes["c-2"].price == Price(Decimal("0.0625"), Decimal("42"))
    assert (sizes["c-2"].cpus, sizes["c-2"].memory_mib, sizes["c-2"].disk_gib) == (2, 4096, 25)


@pytest.mark.parametrize(
    ("asked", "sentence", "hint"),
    [
        ({"region": "lon"}, "there is no region lon", "lon1"),
        ({"region": "nyc2"}, "there is no region nyc2", "nyc3"),
        ({"size": "s-2vcpu-4g"}, "there is no size s-2vcpu-4g", "s-2vcpu-4gb"),
        ({"size": "c-2"}, "size c-2 is not available here", "fra1, nyc3"),
        ({"image": "ubuntu-24-04"}, "there is no image ubuntu-24-04", "ubuntu-24-04-x64"),
    ],
)
def test_choices_that_do_not_exist_name_the_nearest(
    account: Account, asked: dict[str, str], sentence: str, hint: str
) -> None:
    with pytest.raises(UnknownChoice) as caught:
        plan(account, **asked)
    assert str(caught.value) == sentence
    assert hint in caught.value.hint


def test_an_image_that_does_not_fit_names_sizes_that_do(account: Account) -> None:
    with pytest.raises(UnknownChoice, match="no room for the image docker-20-04") as caught:
        plan(account, region="nyc3", size="s-1vcpu-512mb-10gb", image="docker-20-04")
    assert "s-1vcpu-1gb" in caught.value.hint


def test_a_region_is_asked_for(account: Account) -> None:
    with pytest.raises(UsageError, match="--region is needed") as caught:
        plan(account, region=None)
    assert caught.value.hint == "one of: ams3, fra1, lon1, nyc3, sgp1"


def test_a_bad_network_is_refused_before_anything_is_made(account: Account) -> None:
    with pytest.raises(UsageError, match="--ssh-from nowhere"):
        plan(account, ssh_from=("nowhere",))


def test_user_data_beyond_the_limit_makes_nothing(fake: FakeDigitalOcean, account: Account) -> None:
    too_large = Secret("#" * 65537)
    with pytest.raises(UserDataTooLarge, match="65537 bytes"):
        account.create(new_order(plan(account), user_data=too_large))
    assert fake.count("POST") == 0
    account.create(new_order(plan(account), user_data=Secret("#" * 65536)))


def test_the_account_is_named_without_its_credential(account: Account) -> None:
    assert account.account_id() == "5df3e3004a17e242b7c20ca6c9fc25b701a47ece"


def test_regions_say_which_are_open(account: Account) -> None:
    assert {region.name: region.available for region in account.regions()}["nyc2"] is False


def test_login_checks_the_scopes_and_keeps_the_token(fake: FakeDigitalOcean) -> None:
    provider, store = DigitalOcean(), Store()
    selection = provider.selection({})
    token = Secret("dop_v1_new")
    fake.tokens["dop_v1_new"] = {"*"}
    told = provider.login(selection, store, lambda question: token)
    assert told == [
        "the token belongs to sammy@example.com, team My Team",
        "it may do all that codexctl needs",
        "kept in the test's store",
    ]
    assert store.get("digitalocean") == token


def test_login_refuses_a_token_that_may_not_write(fake: FakeDigitalOcean) -> None:
    from codexctl.provision.errors import CredentialsReadOnly

    provider, store = DigitalOcean(), Store()
    with pytest.raises(CredentialsReadOnly, match="lacks droplet:create, droplet:update") as caught:
        provider.login(provider.selection({}), store, lambda question: Secret(READ_ONLY_TOKEN))
    assert "policy digitalocean" in caught.value.hint
    assert store.values == {}


def test_custom_scopes_as_the_policy_prints_them_do(fake: FakeDigitalOcean) -> None:
    provider, store = DigitalOcean(), Store()
    fake.tokens["dop_v1_least"] = set(provider.policy().split())
    store.put("digitalocean", Secret("dop_v1_least"))
    provider.login(provider.selection({}), store, lambda question: Secret("dop_v1_least"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DIGITALOCEAN_TOKEN")
        with provider.open(provider.selection({}), store) as account:
            account.account_id()
            account.regions()
            made = account.create(new_order(plan(account)))
            account.describe(made.ref)
            account.stop(made.ref)
            account.set_expiry(made.ref, Tags(made.ref.workspace_id, OWNER, None))
            account.list_owned([])
            account.destroy(made.ref)
    assert fake.exists() == NOTHING


def test_a_missing_sdk_says_how_to_install_it(
    fake: FakeDigitalOcean, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "codexctl_plugins._digitalocean_api", None)
    provider = DigitalOcean()
    with pytest.raises(ProviderError) as caught:
        provider.open(provider.selection({}), Store())
    assert "'.[digitalocean]'" in caught.value.hint


@settings(max_examples=50, deadline=None)
@given(
    workspace_id=st.text("0123456789abcdef", min_size=32, max_size=32),
    owner=st.text("0123456789abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20),
)
def test_the_name_of_what_has_no_tags_says_whose_it_is(workspace_id: str, owner: str) -> None:
    tags = Tags(workspace_id, owner, None)
    name = values.name_of(tags)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.-]+", name), "as DigitalOcean wants firewalls named"
    assert values.tags_of(name, {}) == tags
    known = Tags(workspace_id, owner, 7)
    assert values.tags_of(name, {workspace_id: known}) == known


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_name_is_read_without_a_crash(name: str) -> None:
    values.tags_of(name, {})
