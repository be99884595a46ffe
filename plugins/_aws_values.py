"""EC2's own words for what codexctl orders, and codexctl's for what EC2 lists. No I/O, no SDK.

A file beside the provider, so that the provider's own is about calls.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from codexctl.provision.model import (
    MARKER,
    Machine,
    Plan,
    Ref,
    Resource,
    State,
    Tags,
    resource_name,
)

Body = dict[str, Any]

STATES: dict[str, State] = {
    "pending": "making",
    "running": "running",
    "stopping": "stopping",
    "stopped": "stopped",
    "shutting-down": "ending",
}
NOT_YET_OR_GONE = {
    "DependencyViolation",
    "InvalidGroup.InUse",
    "InvalidGroup.NotFound",
    "InvalidVolume.NotFound",
    "VolumeInUse",
}
_BY_ITS_OWNER = ("Client.UserInitiatedShutdown", "Client.InstanceInitiatedShutdown")


def launch(plan: Plan, tags: Tags, name: str, group: str) -> Body:
    """The parameters of RunInstances but for the user data."""
    extra = plan.extra
    disk = {
        "VolumeSize": int(extra["disk"]),
        "VolumeType": "gp3",
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    kinds = ["instance", "volume", "network-interface"]
    wanted: Body = {
        "ClientToken": resource_name(tags.workspace_id),
        "ImageId": extra["ami"],
        "InstanceType": plan.size,
        "KeyName": resource_name(tags.workspace_id),
        "MinCount": 1,
        "MaxCount": 1,
        "BlockDeviceMappings": [{"DeviceName": extra["root"], "Ebs": disk}],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 1,
        },
    }
    if extra["burstable"]:
        # Unlimited credits, the default of t3, cost extra when the processor is busy for long.
        wanted["CreditSpecification"] = {"CpuCredits": "standard"}
    if extra["subnet"]:
        interface = {"DeviceIndex": 0, "SubnetId": extra["subnet"], "Groups": [group]}
        wanted["NetworkInterfaces"] = [interface | {"AssociatePublicIpAddress": True}]
    else:
        # EC2 chooses a default subnet in a zone that has capacity.
        wanted["SecurityGroupIds"] = [group]
    if extra["spot"]:
        kinds.append("spot-instances-request")
        spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        wanted["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": spot}
    wanted["TagSpecifications"] = [tagged(kind, tags, name) for kind in kinds]
    return wanted


def ssh_rule(networks: list[str]) -> Body:
    """An IpPermission."""
    rule: Body = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    for network in networks:
        if ipaddress.ip_network(network).version == 4:
            rule.setdefault("IpRanges", []).append({"CidrIp": network})
        else:
            rule.setdefault("Ipv6Ranges", []).append({"CidrIpv6": network})
    return rule


def pairs(tags: Tags) -> list[Body]:
    """Tags as EC2 writes them."""
    return [{"Key": key, "Value": value} for key, value in tags.pairs().items()]


def tagged(kind: str, tags: Tags, name: str) -> Body:
    """A TagSpecification."""
    return {"ResourceType": kind, "Tags": [*pairs(tags), {"Key": "Name", "Value": name}]}


def own(ref: Ref) -> Body:
    """A filter for what belongs to this workspace."""
    return {"Name": f"tag:{MARKER}-id", "Values": [ref.workspace_id]}


def resource(kind: str, id_key: str, body: Body, region: str, *, bills: bool = False) -> Resource:
    """A thing of EC2's lists."""
    words = {tag["Key"]: tag["Value"] for tag in body.get("Tags", [])}
    made = body.get("LaunchTime") or body.get("CreateTime")
    return Resource(
        kind,
        body[id_key],
        words.get("Name", ""),
        region,
        Tags.parse(words),
        bills,
        int(made.timestamp()) if made else None,
        STATES.get(body["State"]["Name"]) if kind == "machine" else None,
    )


def lives(instance: Body) -> bool:
    """It bills, or may again."""
    return instance["State"]["Name"] in ("pending", "running", "stopping", "stopped")


def taken_away(instance: Body) -> str:
    """Why AWS ended this machine, where it was not its owner who did; else an empty text."""
    reason = instance.get("StateReason") or {}
    code = str(reason.get("Code", ""))
    if instance["State"]["Name"] not in ("shutting-down", "terminated") or code in _BY_ITS_OWNER:
        return ""
    if "Spot" in code:
        return "AWS took the spot machine back"
    return f"AWS ended it: {reason['Message']}" if reason.get("Message") else ""


def machine(ref: Ref, instance: Body) -> Machine:
    """An instance of EC2's lists, as the pipeline sees it."""
    state = STATES.get(instance["State"]["Name"], "failed")
    public = instance.get("PublicIpAddress") or instance.get("PublicDnsName") or None
    detail = taken_away(instance)
    if state == "running" and public is None:
        detail = "it has no public address: its subnet gives none"
    return Machine(
        Ref(ref.workspace_id, ref.region, instance["InstanceId"]),
        state,
        public,
        created_at=int(instance["LaunchTime"].timestamp()),
        detail=detail,
    )
