"""What goes wrong with AWS: calls that are lost, refusals, credentials; and what may be called."""

from __future__ import annotations

import base64
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from codexctl_plugins import aws as plugin
from codexctl_plugins.aws import Aws

from codexctl.errors import CodexctlError
from codexctl.provision import errors
from codexctl.provision.model import Account, Ref, Tags
from codexctl.secret import Secret
from tests.clouds.conftest import OWNER, OpenAccount, Store, new_order
from tests.clouds.fake_aws import (
    Answer,
    FakeAws,
    ec2_error,
)
from tests.clouds.test_aws import REGION, STEPS, clear, options, plan


@pytest.fixture
def account(open_aws: OpenAccount) -> Account:
    return open_aws()


@pytest.mark.parametrize("effect", [False, True], ids=["lost request", "lost answer"])
@pytest.mark.parametrize("step", STEPS)
def test_create_again_ends_with_one_machine(
    aws: FakeAws, open_aws: OpenAccount, step: str, effect: bool
) -> None:
    account = open_aws()
    order = new_order(plan(account))
    aws.fail(step, None, effect=effect)
    with pytest.raises(errors.OutcomeUnknown):
        account.create(order)
    again = open_aws()
    again.create(order)
    assert len(aws.runs) == 1
    kinds = sorted(thing.kind for thing in again.resources(order.ref))
    assert kinds == ["key", "machine", "security group", "volume"]
    clear(again, order.ref)


@pytest.mark.parametrize("step", STEPS)
def test_destroy_after_a_create_that_stopped_anywhere_leaves_nothing(
    aws: FakeAws, open_aws: OpenAccount, step: str
) -> None:
    account = open_aws()
    order = new_order(plan(account))
    aws.fail(step, None, effect=True)
    with pytest.raises(errors.OutcomeUnknown):
        account.create(order)
    clear(open_aws(), order.ref)


def test_another_user_data_under_the_same_id_adopts(aws: FakeAws, open_aws: OpenAccount) -> None:
    account = open_aws()
    order = new_order(plan(account))
    made = account.create(order)
    changed = new_order(
        order.plan,
        order.ref.workspace_id,
        public_key=order.public_key,
        user_data=Secret("#cloud-config\n# made anew\n"),
    )
    assert open_aws().create(changed).ref == made.ref
    assert len(aws.runs) == 1


def test_a_machine_that_is_not_shown_yet_is_not_made_twice(
    aws: FakeAws, open_aws: OpenAccount
) -> None:
    aws.invisible_polls = 2
    account = open_aws()
    order = new_order(plan(account))
    made = account.create(order)
    seen = account.describe(made.ref)
    assert seen is not None
    assert seen.state == "making"
    other = new_order(order.plan, order.ref.workspace_id, user_data=Secret("#cloud-config\n"))
    with pytest.raises(errors.OutcomeUnknown, match="does not show it yet") as caught:
        open_aws().create(other)
    assert caught.value.retry == "look"
    assert len(aws.runs) == 1


def test_a_later_page_that_fails_is_never_a_shorter_list(
    aws: FakeAws, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "PAGE_ITEMS", 5)
    chosen = plan(account)
    for _ in range(6):
        account.create(new_order(chosen))
    listed = account.list_owned([REGION])
    assert sum(thing.kind == "machine" for thing in listed) == 6
    before = aws.actions.count("DescribeInstances")
    assert before >= 2, "the machines must need two pages"
    for answer in (None, ec2_error("InternalError", status=500), ec2_error("RequestLimitExceeded")):
        fault = aws.fail("DescribeInstances", answer, skip=1)
        with pytest.raises(errors.IncompleteList):
            account.list_owned([REGION])
        aws.mend(fault)


@pytest.mark.parametrize("body", [b"", b"<html>", b"not xml", b"<RunInstancesResponse/>"])
@pytest.mark.parametrize("effect", [False, True], ids=["not done", "done"])
def test_odd_answers_leave_one_machine(
    aws: FakeAws, account: Account, body: bytes, effect: bool
) -> None:
    order = new_order(plan(account))
    aws.fail("RunInstances", Answer(200, body), effect=effect)
    with pytest.raises(errors.OutcomeUnknown) as caught:
        account.create(order)
    assert caught.value.retry == "look"
    account.create(order)
    assert len(aws.runs) == 1


@pytest.mark.parametrize("body", [b"<html></html>", b"not xml"])
def test_odd_lists_are_errors(aws: FakeAws, account: Account, body: bytes) -> None:
    for action in ("DescribeInstances", "DescribeVolumes", "DescribeSecurityGroups"):
        aws.fail(action, Answer(200, body))
        with pytest.raises(errors.IncompleteList):
            account.list_owned([REGION])
    aws.fail("DescribeKeyPairs", Answer(200, body))
    with pytest.raises(errors.ProviderError):
        account.list_owned([REGION])


def test_every_region_is_listed(aws: FakeAws, account: Account) -> None:
    here, there = new_order(plan(account)), new_order(plan(account, region="us-east-1"))
    account.create(here)
    account.create(there)
    machines = [t for t in account.list_owned([REGION, "us-east-1"]) if t.kind == "machine"]
    assert {machine.region for machine in machines} == {REGION, "us-east-1"}
    assert account.resources(Ref(here.ref.workspace_id, "us-east-1")) == []


CODES = [
    ("AuthFailure", errors.CredentialsWrong),
    ("SignatureDoesNotMatch", errors.CredentialsWrong),
    ("RequestExpired", errors.CredentialsExpired),
    ("UnauthorizedOperation", errors.CredentialsReadOnly),
    ("VcpuLimitExceeded", errors.QuotaReached),
    ("InstanceLimitExceeded", errors.QuotaReached),
    ("MaxSpotInstanceCountExceeded", errors.QuotaReached),
    ("InsufficientInstanceCapacity", errors.NoCapacity),
    ("Unsupported", errors.NoCapacity),
    ("OptInRequired", errors.PaymentRequired),
    ("PendingVerification", errors.PaymentRequired),
    ("RequestLimitExceeded", errors.RateLimited),
    ("InternalError", errors.OutcomeUnknown),
    ("SomethingNew", errors.ProviderError),
]


@pytest.mark.parametrize(("code", "kind"), CODES)
def test_refusals_have_classes_hints_and_request_ids(
    aws: FakeAws, account: Account, code: str, kind: type[errors.ProviderError]
) -> None:
    order = new_order(plan(account))
    aws.fail("RunInstances", ec2_error(code, "said so"))
    with pytest.raises(kind) as caught:
        account.create(order)
    assert caught.value.request_id == "req-1"
    assert caught.value.hint or kind in (errors.OutcomeUnknown, errors.ProviderError)
    assert aws.runs == []


def test_the_clouds_own_limits_are_told(aws: FakeAws, account: Account) -> None:
    aws.sold_out = True
    with pytest.raises(errors.NoCapacity) as caught:
        account.create(new_order(plan(account)))
    assert "--region" in caught.value.hint
    aws.vcpu_limit = 0
    with pytest.raises(errors.QuotaReached) as full:
        account.create(new_order(plan(account)))
    assert "servicequotas" in full.value.hint


def test_a_denied_call_names_its_permission(
    aws: FakeAws, open_aws: OpenAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.clouds.fake_aws import READ_ONLY_KEY

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READ_ONLY_KEY)
    account = open_aws()
    with pytest.raises(errors.CredentialsReadOnly, match="may not ec2:CreateSecurityGroup"):
        account.create(new_order(plan(account)))


def test_a_machine_that_is_changing_is_asked_again(aws: FakeAws, account: Account) -> None:
    made = account.create(new_order(plan(account)))
    account.describe(made.ref)
    aws.fail("StopInstances", ec2_error("IncorrectInstanceState"))
    with pytest.raises(errors.ProviderError) as caught:
        account.stop(made.ref)
    assert caught.value.retry == "again"


# Credentials


def configure(home: Path, text: str) -> None:
    (home / ".aws").mkdir()
    (home / ".aws" / "config").write_text(text)


@pytest.fixture
def no_keys(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


def opened(**chosen: Any) -> Account:
    provider = Aws()
    return provider.open(provider.selection(options(**chosen)), Store())


def test_a_profile_is_chosen_with_its_region(no_keys: None, tmp_path: Path) -> None:
    from tests.clouds.fake_aws import KEY

    configure(
        tmp_path,
        f"[profile work]\nregion = {REGION}\naws_access_key_id = {KEY}\n"
        "aws_secret_access_key = very-secret-access-key\n",
    )
    with opened(profile="work") as account:
        assert account.account_id() == "123456789012"
        assert plan(account, region=None).region == REGION


def test_an_unknown_profile_names_the_nearest(no_keys: None, tmp_path: Path) -> None:
    configure(tmp_path, "[profile work]\nregion = eu-west-2\n")
    with pytest.raises(errors.UnknownChoice, match="there is no profile wrk") as caught:
        opened(profile="wrk")
    assert "work" in caught.value.hint


def test_a_profile_without_keys_is_told(no_keys: None, tmp_path: Path) -> None:
    configure(tmp_path, "[profile work]\nregion = eu-west-2\n")
    with pytest.raises(errors.CredentialsMissing, match="in the profile work"):
        opened(profile="work")


def test_an_sso_session_that_has_ended_says_how_to_sign_in(no_keys: None, tmp_path: Path) -> None:
    configure(
        tmp_path,
        "[sso-session corp]\nsso_region = eu-west-2\nsso_start_url = https://corp.example/start\n"
        "[profile work]\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = dev\n"
        "region = eu-west-2\n",
    )
    with pytest.raises(errors.CredentialsExpired) as caught, opened(profile="work") as account:
        account.account_id()
    assert caught.value.hint == "run: aws sso login --profile work"


def test_a_region_is_asked_for(aws: FakeAws, account: Account) -> None:
    with pytest.raises(CodexctlError, match="--region is needed") as caught:
        plan(account, region=None)
    assert caught.value.exit_code == 2


def test_the_selection_keeps_profile_and_endpoint(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "from-the-environment")
    provider = Aws()
    assert provider.selection(options()) == {
        "profile": "from-the-environment",
        "endpoint": aws.url,
    }
    assert provider.selection(options(profile="work"))["profile"] == "work"


def test_there_is_no_login_but_a_hint() -> None:
    with pytest.raises(errors.Unsupported) as caught:
        Aws().login({}, Store(), lambda question: Secret(""))
    assert "aws configure sso" in caught.value.hint


def test_nothing_of_the_user_data_is_logged(
    aws: FakeAws, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    order = new_order(plan(account), user_data=Secret("#cloud-config\n# VERY-SECRET\n"))
    account.create(order)
    assert base64.b64encode(b"#cloud-config\n# VERY")[:-4].decode() not in caplog.text
    assert "very-secret-access-key" not in caplog.text


def test_the_policy_allows_every_call_and_no_other(aws: FakeAws, account: Account) -> None:
    plan(account, spot=True)
    order = new_order(plan(account))
    made = account.create(order)
    account.account_id()
    account.regions()
    account.describe(made.ref)
    account.describe(made.ref)
    account.stop(made.ref)
    account.start(made.ref)
    account.console(made.ref)
    account.set_expiry(made.ref, Tags(order.ref.workspace_id, OWNER, None))
    with pytest.raises(errors.ProviderError):
        plan(account, subnet="subnet-0000000000000000a")
    with pytest.raises(errors.UnknownChoice):
        plan(account, size="t3.nothing")
    clear(account, order.ref)
    statements = json.loads(Aws().policy())["Statement"]
    allowed: set[str] = set()
    for statement in statements:
        actions = statement["Action"]
        allowed |= {actions} if isinstance(actions, str) else set(actions)
    services = {"GetParameter": "ssm", "GetProducts": "pricing", "GetCallerIdentity": "sts"}
    used = {f"{services.get(action, 'ec2')}:{action}" for action in aws.actions}
    # Asked only where a disk outlives its machine, or a first spot machine needs its role.
    rare = {"ec2:DeleteVolume", "iam:CreateServiceLinkedRole"}
    assert used <= allowed
    assert allowed - used <= rare


def test_a_missing_sdk_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(errors.ProviderError) as caught:
        Aws().open({}, Store())
    assert "'.[aws]'" in caught.value.hint
