"""What DigitalOcean sells: regions, sizes with prices, images, as codexctl's values.

A file beside the provider, so that the provider's own is about machines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING

from codexctl.provision.errors import UnknownChoice
from codexctl.provision.model import Image, Price, Region, Size

if TYPE_CHECKING:
    from ._digitalocean_api import Api, Body

# Long-term support comes in April of even years.
_LTS = re.compile(r"ubuntu-[0-9]?[02468]-04-x64")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as DigitalOcean lists it."""

    name: str
    """What the person types: the slug, or the number of an image that has none."""
    title: str
    regions: tuple[str, ...]
    min_disk_gib: int
    codex_universal: bool
    for_machines: bool
    """A distribution, Codex Universal or the account's own; not one of the many applications."""


class Catalogue:
    """Sizes and images are read once by each object; prices do not change within a run."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def regions(self) -> list[Region]:
        return [
            Region(region["slug"], region["name"], region["available"])
            for region in self._api.list_all("regions", "regions")
        ]

    @cached_property
    def _sizes(self) -> list[Size]:
        sizes = self._api.list_all("sizes", "sizes")
        return [_size(size) for size in sizes if size["available"]]

    @cached_property
    def _pictures(self) -> list[Picture]:
        return [_picture(image) for image in self._api.list_all("images", "images")]

    def places(self) -> list[str]:
        """The regions where anything can be had now."""
        return sorted({place for size in self._sizes for place in size.regions})

    def sizes(self, region: str) -> list[Size]:
        """Those of a region; UnknownChoice for the region."""
        places = self.places()
        if region not in places:
            raise UnknownChoice("region", region, places)
        return [size for size in self._sizes if region in size.regions]

    def size(self, region: str, name: str) -> Size:
        """UnknownChoice with the nearest names here, and where it does exist."""
        here = self.sizes(region)
        for size in here:
            if size.name == name:
                return size
        elsewhere = [size.regions for size in self._sizes if size.name == name]
        raise UnknownChoice("size", name, [size.name for size in here], elsewhere=_flat(elsewhere))

    def images(self, region: str) -> list[Image]:
        here = self._usable(region)
        default = _default(here)
        images = [Image(image.name, image.title, image.regions, image is default) for image in here]
        return sorted(images, key=lambda image: (not image.default, image.name))

    def image(self, region: str, name: str, size: Size) -> Picture:
        """The named one, else the default; UnknownChoice also where it does not fit on the disk."""
        here = self._usable(region)
        image = _default(here) if not name else _first(here, lambda image: image.name == name)
        if image is None:
            known = [image.name for image in here]
            # Applications can be asked for by name, they are only not offered.
            image = _first(self._pictures, lambda image: image.name == name)
            if image is None or region not in image.regions:
                elsewhere = image.regions if image else ()
                raise UnknownChoice("image", name or "ubuntu", known, elsewhere=elsewhere)
        if image.min_disk_gib > size.disk_gib:
            large = [s.name for s in self.sizes(region) if s.disk_gib >= image.min_disk_gib]
            raise UnknownChoice(f"room for the image {image.name} on the size", size.name, large)
        return image

    def _usable(self, region: str) -> list[Picture]:
        return [image for image in self._pictures if image.for_machines and region in image.regions]


def _default(images: list[Picture]) -> Picture | None:
    codex = _first(images, lambda image: image.codex_universal)
    lts = [image for image in images if _LTS.fullmatch(image.name)]
    return codex or max(lts, key=lambda image: image.name, default=None)


def _first(images: list[Picture], fits: Callable[[Picture], bool]) -> Picture | None:
    return next(filter(fits, images), None)


def _flat(lists: Iterable[Iterable[str]]) -> set[str]:
    return {item for items in lists for item in items}


def _size(size: Body) -> Size:
    price = Price(Decimal(str(size["price_hourly"])), Decimal(str(size["price_monthly"])))
    return Size(
        size["slug"], size["vcpus"], size["memory"], size["disk"], price, tuple(size["regions"])
    )


def _picture(image: Body) -> Picture:
    words = f"{image['slug'] or ''} {image['name']}".lower().replace("-", " ")
    codex = image["public"] and "codex universal" in words
    return Picture(
        name=str(image["slug"] or image["id"]),
        title=f"{image['distribution']} {image['name']}",
        regions=tuple(image["regions"]),
        min_disk_gib=image["min_disk_size"] or 0,
        codex_universal=codex,
        for_machines=image["type"] == "base" or not image["public"] or codex,
    )
