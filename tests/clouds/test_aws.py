"""A workspace on AWS: what is ordered, and what it costs."""

from __future__ import annotations

import base64
from decimal import Decimal
from typing import Any

import pytest
from codexctl_plugins import _aws_values as values

from codexctl.errors import UsageError
from codexctl.provision import errors
from codexctl.provision.model import Account, Plan, Price, Ref
from tests.clouds.conftest import OpenAccount, new_order
from tests.clouds.fake_aws import (
    ADDRESS_PRICE,
    DISK_PRICE,
    PRICES,
    SPOT_PRICE,
    UBUNTU_ARM,
    Answer,
    FakeAws,
    ec2_error,
)

REGION = "eu-west-2"
# The calls of one `create`, in order.
STEPS = [
    "CreateSecurityGroup",
    "AuthorizeSecurityGroupIngress",
    "ImportKeyPair",
    "RunInstances",
]


def options(**changes: Any) -> dict[str, Any]:
    chosen = {"region": REGION, "size": "t3.medium", "image": "ubuntu-24.04", "disk": 30}
    chosen |= {"spot": False, "subnet": None, "ssh_from": (), "profile": None}
    return chosen | changes


def plan(account: Account, **changes: Any) -> Plan:
    return account.plan(options(**changes))


@pytest.fixture
def account(open_aws: OpenAccount) -> Account:
    return open_aws()


def clear(account: Account, ref: Ref) -> None:
    """Destroy until nothing is left, as the pipeline does."""
    for _ in range(9):
        account.destroy(ref)
        if not account.resources(ref):
            return
    raise AssertionError("destroy does not come to an end")


# What is ordered


def test_the_order_is_safe_and_ends_with_the_machine(aws: FakeAws, account: Account) -> None:
    order = new_order(plan(account, ssh_from=("203.0.113.7", "2001:db8::/32"), disk=40))
    account.create(order)
    (form,) = aws.runs
    assert form["ClientToken"] == f"codexctl-{order.ref.workspace_id}"
    assert form["MetadataOptions.HttpTokens"] == "required"
    assert form["InstanceInitiatedShutdownBehavior"] == "terminate"
    disk = "BlockDeviceMapping.1.Ebs."
    assert form[disk + "Encrypted"] == "true"
    assert form[disk + "VolumeType"] == "gp3"
    assert form[disk + "VolumeSize"] == "40"
    assert form[disk + "DeleteOnTermination"] == "true"
    assert form["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert form["CreditSpecification.CpuCredits"] == "standard"
    assert base64.b64decode(form["UserData"]).decode() == order.user_data.reveal()  # type: ignore[union-attr]
    tagged = {form[f"TagSpecification.{n}.ResourceType"] for n in (1, 2, 3)}
    assert tagged == {"instance", "volume", "network-interface"}
    for thing in account.resources(order.ref):
        assert thing.tags == order.tags
        assert thing.name == "api-work"


def test_ssh_is_let_in_from_there_only() -> None:
    assert values.ssh_rule(["203.0.113.7/32", "2001:db8::/32"]) == {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": "203.0.113.7/32"}],
        "Ipv6Ranges": [{"CidrIpv6": "2001:db8::/32"}],
    }


def test_a_provision_makes_the_fewest_calls(aws: FakeAws, account: Account) -> None:
    made = account.create(new_order(plan(account)))
    account.describe(made.ref)
    assert aws.actions == [
        "DescribeInstanceTypes",
        "GetParameter",
        "DescribeImages",
        "DescribeVpcs",
        "GetProducts",  # the machine
        "GetProducts",  # its disk
        "GetProducts",  # its address
        *STEPS,
        "DescribeInstances",
    ]


def test_a_subnet_is_used_with_its_vpc(aws: FakeAws, account: Account) -> None:
    subnets = account._cloud.call(REGION, "describe_subnets")["Subnets"]  # type: ignore[attr-defined]
    chosen = plan(account, subnet=subnets[0]["SubnetId"])
    assert chosen.extra["vpc"] == subnets[0]["VpcId"]
    account.create(new_order(chosen))
    (form,) = aws.runs
    assert form["NetworkInterface.1.SubnetId"] == subnets[0]["SubnetId"]
    assert form["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    with pytest.raises(errors.ProviderError, match="there is no subnet subnet-0000"):
        plan(account, subnet="subnet-0000000000000000a")


def test_without_a_default_vpc_it_says_what_to_do(aws: FakeAws, account: Account) -> None:
    empty = b"<DescribeVpcsResponse><vpcSet/></DescribeVpcsResponse>"
    aws.fail("DescribeVpcs", Answer(200, empty))
    with pytest.raises(errors.ProviderError, match="no default VPC in eu-west-2") as caught:
        plan(account)
    assert "--subnet" in caught.value.hint


def test_the_image_fits_the_processor(aws: FakeAws, account: Account) -> None:
    assert plan(account, size="t4g.medium").extra["ami"] == UBUNTU_ARM
    assert plan(account, image="debian-12").extra["root"] == "/dev/xvda"
    assert plan(account, image=UBUNTU_ARM, size="t4g.medium").extra["ami"] == UBUNTU_ARM
    with pytest.raises(UsageError, match=r"is for arm64, and t3\.medium is x86_64"):
        plan(account, image=UBUNTU_ARM)


@pytest.mark.parametrize(
    ("asked", "sentence", "hint"),
    [
        ({"region": "eu-west-9"}, "there is no region eu-west-9", "eu-west-2"),
        ({"size": "t3.medum"}, "there is no size t3.medum", "t3.medium"),
        ({"image": "ubuntu-24"}, "there is no image ubuntu-24", "ubuntu-24.04"),
        ({"image": "ami-0123"}, "there is no image in eu-west-2, ami-0123", "--image ami-"),
    ],
)
def test_choices_that_do_not_exist_name_the_nearest(
    aws: FakeAws, account: Account, asked: dict[str, str], sentence: str, hint: str
) -> None:
    with pytest.raises(errors.UnknownChoice) as caught:
        plan(account, **asked)
    assert str(caught.value) == sentence
    if asked != {"image": "ami-0123"}:
        assert hint in caught.value.hint


def test_a_size_that_is_elsewhere_says_where(aws: FakeAws, account: Account) -> None:
    # moto describes every size in every region; EC2 knows those of the region only.
    aws.fail("DescribeInstanceTypes", ec2_error("InvalidInstanceType"))
    with pytest.raises(errors.UnknownChoice) as caught:
        plan(account, size="c5ad.large")
    assert str(caught.value) == "size c5ad.large is not available here"
    assert caught.value.hint.startswith("it exists in: ")
    assert caught.value.hint.count(",") >= 2


def test_an_image_whose_parameter_is_not_there_is_told(aws: FakeAws, account: Account) -> None:
    with pytest.raises(errors.ProviderError, match="AWS has no parameter /own/image") as caught:
        plan(account, image="ssm:/own/image")
    assert "ami-" in caught.value.hint


# What it costs


def rounded(hourly: Decimal, monthly: Decimal) -> Price:
    return Price(round(hourly, 5), round(monthly, 2))


def test_the_price_has_disk_and_address_in_it(aws: FakeAws, account: Account) -> None:
    chosen = plan(account, disk=50)
    hour = Decimal(PRICES["t3.medium"]) + Decimal(ADDRESS_PRICE)
    month = Decimal(DISK_PRICE) * 50
    assert chosen.price == rounded(hour + month / 730, hour * 730 + month)
    assert chosen.price_stopped == rounded(month / 730, month)


def test_a_price_that_cannot_be_learnt_is_unknown_and_says_why(
    aws: FakeAws, account: Account
) -> None:
    aws.fail("GetProducts", Answer(400, b'{"__type":"AccessDeniedException"}'), times=9)
    chosen = plan(account)
    assert chosen.price is None
    assert any("the price is unknown" in line for line in chosen.lines)
    assert any("may not pricing:GetProducts" in line for line in chosen.lines)


@pytest.mark.parametrize("body", [b"{}", b'{"PriceList": ["not json", "{}", 7]}'])
def test_an_odd_price_list_is_no_price(aws: FakeAws, account: Account, body: bytes) -> None:
    aws.fail("GetProducts", Answer(200, body), times=9)
    assert plan(account).price is None


def test_spot_is_priced_told_and_cannot_be_stopped(aws: FakeAws, account: Account) -> None:
    chosen = plan(account, spot=True)
    month = Decimal(DISK_PRICE) * 30
    hour = Decimal(SPOT_PRICE) + Decimal(ADDRESS_PRICE)
    assert chosen.price == rounded(hour + month / 730, hour * 730 + month)
    assert chosen.price_stopped is None
    assert any("two minutes' notice" in line for line in chosen.lines)
    made = account.create(new_order(chosen))
    (form,) = aws.runs
    market = "InstanceMarketOptions."
    assert form[market + "MarketType"] == "spot"
    assert form[market + "SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert form["TagSpecification.4.ResourceType"] == "spot-instances-request"
    account.describe(made.ref)
    with pytest.raises(errors.Unsupported, match="spot machine cannot be stopped"):
        account.stop(made.ref)


@pytest.mark.parametrize(
    ("state", "code", "told"),
    [
        ("running", "", ""),
        ("terminated", "Client.UserInitiatedShutdown", ""),
        ("terminated", "Client.InstanceInitiatedShutdown", ""),
        ("shutting-down", "Server.SpotInstanceTermination", "AWS took the spot machine back"),
        ("terminated", "Client.VolumeLimitExceeded", "AWS ended it: because"),
    ],
)
def test_why_a_machine_is_gone_is_told(state: str, code: str, told: str) -> None:
    reason = {"Code": code, "Message": "because"}
    assert values.taken_away({"State": {"Name": state}, "StateReason": reason}) == told
