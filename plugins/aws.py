"""AWS: EC2 instances, by boto3.

For each workspace there are, in the order in which they are made, all tagged in the call that makes
them: a security group and a key pair named `codexctl-ID`, and an instance with its disk, ordered
under the client token `codexctl-ID`, so that the same order twice is one machine for EC2 itself.
The machine ends itself: a shutdown from inside terminates it, disk included.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codexctl.hookspecs import hookimpl
from codexctl.provision.errors import (
    OutcomeUnknown,
    ProviderError,
    Unsupported,
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
from . import _aws_values as values

if TYPE_CHECKING:
    import click

    from ._aws_api import Cloud

Body = dict[str, Any]

DEFAULT_SIZE = "t3.medium"
USER_DATA_BYTES = 16384
PAGE_ITEMS = 200


@hookimpl
def codexctl_provider() -> Provider:
    return Aws()


class Aws(Provider):
    name = "aws"
    summary = "EC2 instances of AWS"
    capabilities = Capabilities(
        creates=True,
        stops=True,
        stop_saves="the machine and its address; the disk is billed on (spot cannot be stopped)",
        host_key=True,
        metadata=True,
        ends_itself=True,
        user_data_bytes=USER_DATA_BYTES,
    )

    def options(self) -> Sequence[click.Parameter]:
        import click

        from ._aws_catalogue import DEFAULT_DISK_GIB, DEFAULT_IMAGE

        return [
            click.Option(
                ["--region"], metavar="NAME", help="As eu-west-2; else that of the profile."
            ),
            click.Option(
                ["--size"],
                metavar="TYPE",
                default=DEFAULT_SIZE,
                show_default=True,
                help="Instance type.",
            ),
            click.Option(
                ["--image"],
                metavar="NAME",
                default=DEFAULT_IMAGE,
                show_default=True,
                help="ubuntu-22.04, debian-12, debian-13, ami-ID or ssm:/PARAMETER.",
            ),
            click.Option(
                ["--disk"],
                metavar="GIB",
                type=click.IntRange(8, 16384),
                default=DEFAULT_DISK_GIB,
                show_default=True,
                help="Size of the encrypted gp3 disk.",
            ),
            click.Option(
                ["--spot"],
                is_flag=True,
                help="Cheaper, but AWS may take the machine back with two minutes' notice.",
            ),
            click.Option(
                ["--subnet"], metavar="ID", help="Instead of a default subnet of the default VPC."
            ),
            click.Option(
                ["--ssh-from"],
                metavar="NETWORK",
                multiple=True,
                help="Let ssh in from there only; 'here' is this device's address. "
                "Anywhere without it.",
            ),
            click.Option(["--profile"], metavar="NAME", help="Profile of ~/.aws to use."),
        ]

    def selection(self, options: Mapping[str, Any]) -> dict[str, str]:
        chosen = {
            "profile": options.get("profile") or os.environ.get("AWS_PROFILE", ""),
            "endpoint": os.environ.get("AWS_ENDPOINT_URL", ""),
        }
        return {name: value for name, value in chosen.items() if value}

    def open(self, selection: Mapping[str, str], secrets: SecretStore) -> Instances:
        from ._aws_api import Cloud

        try:
            import boto3  # noqa: F401  # is it there?
        except ModuleNotFoundError as error:
            raise ProviderError(
                f"the AWS SDK is not installed: no module {error.name}",
                hint="install boto3 where codexctl is: uv tool install '.[aws]' in its clone",
            ) from None
        return Instances(Cloud(selection.get("profile", ""), selection.get("endpoint", "")))

    def login(
        self, selection: Mapping[str, str], secrets: SecretStore, ask: Callable[[str], Secret]
    ) -> list[str]:
        raise Unsupported(
            "codexctl keeps no credentials of AWS; it uses those of the AWS tools",
            hint="sign in with: aws configure sso, or aws login",
        )

    def policy(self) -> str:
        from ._aws_policy import document

        return document()


class Instances(Account):
    """EC2 in every region, with one set of credentials."""

    def __init__(self, cloud: Cloud) -> None:
        from ._aws_catalogue import PRICES_REGION, Catalogue

        self._cloud = cloud
        self._catalogue = Catalogue(cloud)
        self._home = cloud.region or PRICES_REGION
        self._just_made: set[str] = set()
        """Machines that this object ordered: EC2 may not show them yet, but they are there."""

    def close(self) -> None:
        self._cloud.close()

    def account_id(self) -> str:
        return str(self._cloud.ask(self._home, "get_caller_identity", "Account", service="sts"))

    def regions(self) -> list[Region]:
        return self._catalogue.regions(self._home)

    def sizes(self, region: str) -> list[Size]:
        return self._catalogue.sizes(region)

    def images(self, region: str) -> list[Image]:
        return self._catalogue.images()

    def plan(self, options: Mapping[str, Any]) -> Plan:
        region = options.get("region") or self._cloud.region
        if not region:
            from ._aws_api import no_region

            raise no_region()
        size = self._catalogue.size(region, require_text(options, "size"))
        image = self._catalogue.image(region, require_text(options, "image"), size)
        name, spot = str(size["InstanceType"]), bool(options.get("spot"))
        disk = max(int(options["disk"]), image.min_disk_gib)
        subnet = options.get("subnet") or ""
        vpc = self._network(region, subnet)
        networks = address.sources(options.get("ssh_from") or ())
        ask_price = self._catalogue.spot_price if spot else self._catalogue.price
        price = ask_price(region, name, disk)
        lines = [
            f"a security group that lets ssh in from {address.told(networks)}, and nothing else",
            f"an encrypted gp3 disk of {disk} GiB, which goes with the machine",
        ]
        if spot:
            lines.append(
                "a spot machine: AWS may take it back with two minutes' notice, disk included; "
                "it cannot be stopped, and its price changes"
            )
        if price is None:
            lines.append(f"the price is unknown: {self._catalogue.why_unpriced}")
        else:
            lines.append("the price has the disk and the public address in it, traffic not")
        return Plan(
            region=region,
            size=name,
            image=str(options["image"]),
            price=price,
            price_stopped=None if spot else self._catalogue.price_stopped(region, disk),
            lines=tuple(lines),
            extra={
                "ami": image.ami,
                "root": image.root_device,
                "disk": str(disk),
                "spot": "1" if spot else "",
                "burstable": "1" if size.get("BurstablePerformanceSupported") else "",
                "subnet": subnet,
                "vpc": vpc,
                "ssh_from": ",".join(networks),
            },
        )

    def _network(self, region: str, subnet: str) -> str:
        """The VPC that the machine will be in; ProviderError where there is none for it."""
        from ._aws_api import Answered

        if subnet:
            try:
                found = self._cloud.ask(region, "describe_subnets", "Subnets", SubnetIds=[subnet])
                return str(found[0]["VpcId"])
            except (Answered, IndexError):
                raise ProviderError(
                    f"there is no subnet {subnet} in {region}",
                    hint=f"aws ec2 describe-subnets --region {region}",
                ) from None
        default = [{"Name": "is-default", "Values": ["true"]}]
        found = self._cloud.ask(region, "describe_vpcs", "Vpcs", Filters=default)
        if not found:
            raise ProviderError(
                f"this account has no default VPC in {region}",
                hint=f"name a subnet with --subnet, or make one: "
                f"aws ec2 create-default-vpc --region {region}",
            )
        return str(found[0]["VpcId"])

    # Machines

    def create(self, order: Order) -> Machine:
        from ._aws_api import Answered

        user_data = (order.user_data or Secret("")).reveal()
        if len(user_data.encode()) > USER_DATA_BYTES:
            raise UserDataTooLarge(
                f"the user data is {len(user_data.encode())} bytes; EC2 takes {USER_DATA_BYTES}",
                hint="shorten the --setup scripts",
            )
        group = self._make_group(order)
        self._register_key(order)
        try:
            (instance,) = self._cloud.ask(
                order.plan.region,
                "run_instances",
                "Instances",
                UserData=user_data,
                **values.launch(order.plan, order.tags, order.name, group),
            )
        except Answered as error:
            if error.aws_code != "IdempotentParameterMismatch":
                raise
            # The token was used with other user data: an earlier order went through.
            found = self._instances(order.ref)
            if not found:
                raise OutcomeUnknown(
                    "an earlier order under this id went through, and EC2 does not show it yet",
                    request_id=error.request_id,
                ) from None
            return values.machine(order.ref, found[0])
        self._just_made.add(instance["InstanceId"])
        return values.machine(order.ref, instance)

    def _make_group(self, order: Order) -> str:
        """The id of the workspace's own security group, with its rule."""
        from ._aws_api import Answered

        region, extra = order.plan.region, order.plan.extra
        name = resource_name(order.ref.workspace_id)
        try:
            group = self._cloud.ask(
                region,
                "create_security_group",
                "GroupId",
                GroupName=name,
                Description=f"codexctl workspace {order.name}",
                VpcId=extra["vpc"],
                TagSpecifications=[values.tagged("security-group", order.tags, order.name)],
            )
        except Answered as error:
            if error.aws_code != "InvalidGroup.Duplicate":
                raise
            wanted = [{"Name": "group-name", "Values": [name]}]
            group = self._all(region, "describe_security_groups", "SecurityGroups", wanted)[0][
                "GroupId"
            ]
        try:
            self._cloud.call(
                region,
                "authorize_security_group_ingress",
                GroupId=group,
                IpPermissions=[values.ssh_rule(extra["ssh_from"].split(","))],
            )
        except Answered as error:
            if error.aws_code != "InvalidPermission.Duplicate":
                raise
        return str(group)

    def _register_key(self, order: Order) -> None:
        from ._aws_api import Answered

        try:
            self._cloud.call(
                order.plan.region,
                "import_key_pair",
                KeyName=resource_name(order.ref.workspace_id),
                PublicKeyMaterial=order.public_key.encode(),
                TagSpecifications=[values.tagged("key-pair", order.tags, order.name)],
            )
        except Answered as error:
            if error.aws_code != "InvalidKeyPair.Duplicate":
                raise

    def _all(self, region: str, operation: str, member: str, filters: list[Body]) -> list[Body]:
        paging = {"PageSize": PAGE_ITEMS}
        return self._cloud.pages(
            region, operation, member, Filters=filters, PaginationConfig=paging
        )

    def _instances(self, ref: Ref) -> list[Body]:
        """Those of this workspace, living ones first; usually one."""
        return self._by_filter(ref.region, [values.own(ref)])

    def _by_filter(self, region: str, filters: list[Body]) -> list[Body]:
        reservations = self._all(region, "describe_instances", "Reservations", filters)
        found = [instance for group in reservations for instance in group["Instances"]]
        return sorted(found, key=lambda instance: instance["State"]["Name"] not in values.STATES)

    def describe(self, ref: Ref) -> Machine | None:
        found = self._instances(ref)
        if not found:
            if ref.machine_id and ref.machine_id in self._just_made:
                return Machine(ref, "making", None)
            return None
        instance = found[0]
        if instance["State"]["Name"] in values.STATES or values.taken_away(instance):
            return values.machine(ref, instance)
        return None

    def stop(self, ref: Ref) -> None:
        for instance in self._instances(ref):
            if instance["State"]["Name"] not in ("pending", "running"):
                continue
            if instance.get("InstanceLifecycle") == "spot":
                raise Unsupported(
                    "a spot machine cannot be stopped",
                    hint="codexctl workspace destroy ends it and its bill",
                )
            self._cloud.call(ref.region, "stop_instances", InstanceIds=[instance["InstanceId"]])

    def start(self, ref: Ref) -> None:
        for instance in self._instances(ref):
            if instance["State"]["Name"] in ("stopping", "stopped"):
                ids = [instance["InstanceId"]]
                self._cloud.call(ref.region, "start_instances", InstanceIds=ids)

    def set_expiry(self, ref: Ref, tags: Tags) -> None:
        ids = [thing.resource_id for thing in self.resources(ref)]
        if ids:
            pairs = values.pairs(tags)
            self._cloud.call(ref.region, "create_tags", Resources=ids, Tags=pairs)

    def console(self, ref: Ref) -> str | None:
        found = self._instances(ref)
        if not found:
            return None
        instance = found[0]["InstanceId"]
        answer = self._cloud.call(ref.region, "get_console_output", InstanceId=instance)
        return str(answer.get("Output") or "")

    # What is there

    def list_owned(self, regions: Collection[str]) -> list[Resource]:
        marked = {"Name": "tag-key", "Values": [MARKER]}
        return [thing for region in sorted(regions) for thing in self._listed(region, marked)]

    def resources(self, ref: Ref) -> list[Resource]:
        return self._listed(ref.region, values.own(ref))

    def _listed(self, region: str, which: Body) -> list[Resource]:
        machines = [
            values.resource("machine", "InstanceId", instance, region, bills=True)
            for instance in self._by_filter(region, [which])
            if values.lives(instance)
        ]
        volumes = [
            values.resource("volume", "VolumeId", volume, region, bills=True)
            for volume in self._all(region, "describe_volumes", "Volumes", [which])
            if volume["State"] not in ("deleting", "deleted")
        ]
        groups = [
            values.resource("security group", "GroupId", group, region)
            for group in self._all(region, "describe_security_groups", "SecurityGroups", [which])
        ]
        pairs = self._cloud.ask(region, "describe_key_pairs", "KeyPairs", Filters=[which])
        return [
            *machines,
            *volumes,
            *groups,
            *(values.resource("key", "KeyPairId", pair, region) for pair in pairs),
        ]

    def destroy(self, ref: Ref) -> None:
        from ._aws_api import Answered

        living = [item["InstanceId"] for item in self._instances(ref) if values.lives(item)]
        if living:
            self._cloud.call(ref.region, "terminate_instances", InstanceIds=living)
        name = resource_name(ref.workspace_id)
        self._cloud.call(ref.region, "delete_key_pair", KeyName=name)
        for thing in self.resources(ref):
            try:
                if thing.kind == "volume":
                    self._cloud.call(ref.region, "delete_volume", VolumeId=thing.resource_id)
                elif thing.kind == "security group":
                    self._cloud.call(ref.region, "delete_security_group", GroupId=thing.resource_id)
            except Answered as error:
                # In use by the machine that is ending, or gone meanwhile: the next look tells.
                if error.aws_code not in values.NOT_YET_OR_GONE:
                    raise
