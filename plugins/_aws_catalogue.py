"""What AWS sells in a region: sizes, images by SSM parameter, and what they really cost.

A price here is what the machine costs while it runs: the instance, its disk and its public IPv4
address, by AWS's own price list. Where the list cannot be read the price is unknown, and the plan
says why: no price is better than a wrong one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from codexctl.errors import UsageError
from codexctl.provision.errors import ProviderError, UnknownChoice
from codexctl.provision.model import HOURS_PER_MONTH, Image, Price, Region, Size

from ._aws_api import Answered, Body, Cloud

PRICES_REGION = "us-east-1"
"""One of the few regions where the price list is served, for all regions."""
PAGE_ITEMS = 100
DEFAULT_DISK_GIB = 30
DEFAULT_IMAGE = "ubuntu-24.04"
_CANONICAL = "/aws/service/canonical/ubuntu/server"
_IMAGES = {
    "ubuntu-24.04": (
        "Ubuntu 24.04 LTS",
        _CANONICAL + "/24.04/stable/current/{arch}/hvm/ebs-gp3/ami-id",
    ),
    "ubuntu-22.04": (
        "Ubuntu 22.04 LTS",
        _CANONICAL + "/22.04/stable/current/{arch}/hvm/ebs-gp2/ami-id",
    ),
    "debian-13": ("Debian 13", "/aws/service/debian/release/13/latest/{arch}"),
    "debian-12": ("Debian 12", "/aws/service/debian/release/12/latest/{arch}"),
}
_ARCH = {"x86_64": "amd64", "arm64": "arm64"}
ELSEWHERE_AT_MOST = 3
"""How many regions are named for a size that is not here."""


@dataclass(frozen=True, slots=True)
class Machine:
    """An image as it will be used."""

    ami: str
    root_device: str
    min_disk_gib: int


class Catalogue:
    """Everything that is asked before an order; `why_unpriced` tells the last missing price."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.why_unpriced = ""
        self._parts: dict[str, Decimal | None] = {}

    def check_region(self, region: str) -> None:
        """UnknownChoice where the SDK knows no such region, before anything is sent there."""
        titles = self._cloud.region_titles()
        if region not in titles:
            raise UnknownChoice("region", region, titles)

    def regions(self, home: str) -> list[Region]:
        titles = self._cloud.region_titles()
        found = self._cloud.ask(home, "describe_regions", "Regions", AllRegions=True)
        return [
            Region(
                region["RegionName"],
                titles.get(region["RegionName"], ""),
                region.get("OptInStatus") != "not-opted-in",
            )
            for region in found
        ]

    # Sizes

    def sizes(self, region: str) -> list[Size]:
        """All of a region; about ten calls for the sizes and as many for their prices."""
        self.check_region(region)
        types = self._cloud.pages(
            region,
            "describe_instance_types",
            "InstanceTypes",
            PaginationConfig={"PageSize": PAGE_ITEMS},
        )
        prices = self._instance_prices(region)
        return [
            _size(body, self._total(region, prices.get(body["InstanceType"]), DEFAULT_DISK_GIB))
            for body in types
            if _usable(body)
        ]

    def size(self, region: str, name: str) -> Body:
        """UnknownChoice with the nearest names here, and where it does exist."""
        self.check_region(region)
        try:
            (body,) = self._cloud.ask(
                region, "describe_instance_types", "InstanceTypes", InstanceTypes=[name]
            )
        except Answered as error:
            if not error.aws_code.startswith("InvalidInstanceType"):
                raise
            raise self._unknown_size(region, name) from None
        if not _usable(body):
            raise UnknownChoice("size for Linux machines", name, self._offered(region))
        known: Body = body
        return known

    def _unknown_size(self, region: str, name: str) -> UnknownChoice:
        elsewhere: list[str] = []
        if name in self._cloud.known_sizes(region):
            for other in self.regions(region):
                if len(elsewhere) == ELSEWHERE_AT_MOST:
                    break
                if other.available and name in self._offered(other.name, name):
                    elsewhere.append(other.name)
        return UnknownChoice("size", name, self._offered(region), elsewhere=elsewhere)

    def _offered(self, region: str, *names: str) -> list[str]:
        """Which of these sizes, or of all, a region has."""
        filters = [{"Name": "instance-type", "Values": list(names)}] if names else []
        offers = self._cloud.pages(
            region,
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            Filters=filters,
        )
        return [str(offer["InstanceType"]) for offer in offers]

    # Prices

    def price(self, region: str, size: str, disk_gib: int) -> Price | None:
        """An hour of the machine with its disk and address; None says `why_unpriced`."""
        prices = self._instance_prices(region, size)
        return self._total(region, prices.get(size), disk_gib)

    def spot_price(self, region: str, size: str, disk_gib: int) -> Price | None:
        """The same with what AWS now takes for spot, in the dearest zone of the region."""
        history = self._cloud.pages(
            region,
            "describe_spot_price_history",
            "SpotPriceHistory",
            InstanceTypes=[size],
            ProductDescriptions=["Linux/UNIX"],
            StartTime=_now(),
        )
        prices = [Decimal(entry["SpotPrice"]) for entry in history]
        if not prices:
            self.why_unpriced = f"AWS tells no spot price of {size} in {region}"
        return self._total(region, max(prices, default=None), disk_gib)

    def price_stopped(self, region: str, disk_gib: int) -> Price | None:
        """The disk alone: a stopped machine has no address."""
        monthly = self._disk_price(region)
        if monthly is None:
            return None
        return _price(monthly * disk_gib / HOURS_PER_MONTH, monthly * disk_gib)

    def _total(self, region: str, instance: Decimal | None, disk_gib: int) -> Price | None:
        if instance is None:
            self.why_unpriced = self.why_unpriced or "AWS's price list does not have it"
            return None
        disk, address = self.price_stopped(region, disk_gib), self._address_price(region)
        if disk is None or address is None:
            self.why_unpriced = self.why_unpriced or "AWS's price list lacks disks or addresses"
            return None
        hourly = instance + address
        return _price(hourly + disk.hourly, hourly * HOURS_PER_MONTH + disk.monthly)

    def _instance_prices(self, region: str, size: str = "") -> dict[str, Decimal]:
        """Dollars an hour by size: Linux without licences, on demand, shared hardware."""
        wanted = {
            "regionCode": region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
            "operation": "RunInstances",
        }
        products = self._products("AmazonEC2", wanted | ({"instanceType": size} if size else {}))
        return {attributes["instanceType"]: price for attributes, price in products}

    def _disk_price(self, region: str) -> Decimal | None:
        """Dollars a month for a GiB of gp3."""
        if region not in self._parts:
            wanted = {"regionCode": region, "productFamily": "Storage", "volumeApiName": "gp3"}
            products = self._products("AmazonEC2", wanted)
            self._parts[region] = products[0][1] if products else None
        return self._parts[region]

    def _address_price(self, region: str) -> Decimal | None:
        """Dollars an hour for a public IPv4 address in use."""
        key = f"{region} address"
        if key not in self._parts:
            prices = [
                price
                for attributes, price in self._products("AmazonVPC", {"regionCode": region})
                if attributes.get("usagetype", "").endswith("PublicIPv4:InUseAddress")
            ]
            self._parts[key] = prices[0] if prices else None
        return self._parts[key]

    def _products(
        self, service: str, wanted: Mapping[str, str]
    ) -> list[tuple[dict[str, str], Decimal]]:
        """Attributes and on-demand dollars of what the price list has; [] says `why_unpriced`."""
        try:
            texts = self._cloud.pages(
                PRICES_REGION,
                "get_products",
                "PriceList",
                service="pricing",
                ServiceCode=service,
                Filters=[
                    {"Type": "TERM_MATCH", "Field": name, "Value": value}
                    for name, value in wanted.items()
                ],
            )
        except ProviderError as error:
            self.why_unpriced = str(error)
            return []
        found = [priced for text in texts if (priced := _priced(str(text))) is not None]
        if not found:
            self.why_unpriced = f"AWS's price list has no such product: {dict(wanted)}"
        return found

    # Images

    def images(self) -> list[Image]:
        return [Image(name, title, default=name == DEFAULT_IMAGE) for name, (title, _) in _listed()]

    def image(self, region: str, name: str, size: Body) -> Machine:
        """UnknownChoice for a name, or an image of another architecture."""
        architecture = _architecture(size)
        ami = name if name.startswith("ami-") else self._ami(region, name, architecture)
        try:
            (image,) = self._cloud.ask(region, "describe_images", "Images", ImageIds=[ami])
        except (Answered, ValueError):
            raise UnknownChoice(f"image in {region},", name, _IMAGES) from None
        if image["Architecture"] != architecture:
            raise UsageError(
                f"the image {name} is for {image['Architecture']}, and {size['InstanceType']} "
                f"is {architecture}",
                hint="choose another --image or --size",
            )
        root = str(image.get("RootDeviceName") or "/dev/sda1")
        sizes = [
            int(mapping["Ebs"].get("VolumeSize", 0))
            for mapping in image.get("BlockDeviceMappings", [])
            if mapping.get("DeviceName") == root and "Ebs" in mapping
        ]
        return Machine(ami, root, max(sizes, default=0))

    def _ami(self, region: str, name: str, architecture: str) -> str:
        parameter = name.removeprefix("ssm:")
        if name in _IMAGES:
            parameter = _IMAGES[name][1].format(arch=_ARCH[architecture])
        elif not name.startswith("ssm:/"):
            raise UnknownChoice("image", name, _IMAGES)
        try:
            found = self._cloud.ask(
                region, "get_parameter", "Parameter", service="ssm", Name=parameter
            )
        except Answered as error:
            raise ProviderError(
                f"AWS has no parameter {parameter} in {region}, which names the image {name}",
                hint="name an image with --image ami-…",
                request_id=error.request_id,
            ) from None
        return str(found["Value"])


def _listed() -> list[tuple[str, tuple[str, str]]]:
    return sorted(_IMAGES.items(), key=lambda item: (item[0] != DEFAULT_IMAGE, item[0]))


def _usable(size: Body) -> bool:
    """Of the present generation or not: x86_64 or arm64, and not the Macs."""
    architectures = size["ProcessorInfo"]["SupportedArchitectures"]
    return any(name in _ARCH for name in architectures)


def _architecture(size: Body) -> str:
    architectures = size["ProcessorInfo"]["SupportedArchitectures"]
    return next(name for name in _ARCH if name in architectures)


def _size(body: Body, price: Price | None) -> Size:
    return Size(
        name=body["InstanceType"],
        cpus=body["VCpuInfo"]["DefaultVCpus"],
        memory_mib=body["MemoryInfo"]["SizeInMiB"],
        disk_gib=DEFAULT_DISK_GIB,
        price=price,
        architecture=_architecture(body),
    )


def _priced(text: str) -> tuple[dict[str, str], Decimal] | None:
    """A product of the price list; None where it does not have exactly one price above nothing."""
    try:
        product: dict[str, Any] = json.loads(text)
        prices = {
            Decimal(dimension["pricePerUnit"]["USD"])
            for term in product["terms"]["OnDemand"].values()
            for dimension in term["priceDimensions"].values()
        } - {Decimal(0)}
        attributes: dict[str, str] = product["product"]["attributes"]
    except (KeyError, TypeError, AttributeError, ValueError, InvalidOperation):
        return None
    return (attributes, prices.pop()) if len(prices) == 1 else None


def _price(hourly: Decimal, monthly: Decimal) -> Price:
    return Price(hourly.quantize(Decimal("0.00001")), monthly.quantize(Decimal("0.01")))


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)
