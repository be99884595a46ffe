"""What the fake DigitalOcean sells: a few regions, sizes and images, with real slugs and prices."""

from __future__ import annotations

from typing import Any

Body = dict[str, Any]

_REGIONS = {
    "nyc3": "New York 3",
    "lon1": "London 1",
    "ams3": "Amsterdam 3",
    "fra1": "Frankfurt 1",
    "sgp1": "Singapore 1",
}
_CLOSED = "nyc2"
_EVERYWHERE = list(_REGIONS)

# slug, MiB of memory, vCPUs, GB of disk, dollars a month, dollars an hour, regions
_SIZES: list[tuple[str, int, int, int, float, float, list[str]]] = [
    ("s-1vcpu-512mb-10gb", 512, 1, 10, 4, 0.00595, ["nyc3", "ams3"]),
    ("s-1vcpu-1gb", 1024, 1, 25, 6, 0.00893, _EVERYWHERE),
    ("s-2vcpu-4gb", 4096, 2, 80, 24, 0.03571, _EVERYWHERE),
    ("s-4vcpu-8gb", 8192, 4, 160, 48, 0.07143, _EVERYWHERE),
    ("c-2", 4096, 2, 25, 42, 0.0625, ["nyc3", "fra1"]),
]

# id, slug, name, distribution, type, smallest disk in GB
_IMAGES: list[tuple[int, str | None, str, str, str, int]] = [
    (101, "debian-12-x64", "12 x64", "Debian", "base", 7),
    (102, "ubuntu-22-04-x64", "22.04 (LTS) x64", "Ubuntu", "base", 7),
    (103, "ubuntu-24-04-x64", "24.04 (LTS) x64", "Ubuntu", "base", 7),
    (104, "ubuntu-25-04-x64", "25.04 x64", "Ubuntu", "base", 7),
    (105, "docker-20-04", "Docker on Ubuntu", "Ubuntu", "snapshot", 25),
    (106, None, "my-snapshot", "Ubuntu", "snapshot", 20),
]
CODEX_UNIVERSAL = (107, "codex-universal", "Codex Universal", "Ubuntu", "snapshot", 25)


def REGIONS() -> list[Body]:
    names = {**_REGIONS, _CLOSED: "New York 2"}
    return [
        {
            "name": title,
            "slug": slug,
            "features": ["backups", "ipv6", "metadata"],
            "available": slug != _CLOSED,
            "sizes": [size[0] for size in _SIZES if slug in size[6]],
        }
        for slug, title in names.items()
    ]


def SIZES() -> list[Body]:
    return [
        {
            "slug": slug,
            "memory": memory,
            "vcpus": vcpus,
            "disk": disk,
            "transfer": 4.0,
            "price_monthly": monthly,
            "price_hourly": hourly,
            "regions": regions,
            "available": True,
            "description": "Basic",
        }
        for slug, memory, vcpus, disk, monthly, hourly, regions in _SIZES
    ]


def image(
    number: int, slug: str | None, name: str, distribution: str, kind: str, disk: int
) -> Body:
    return {
        "id": number,
        "name": name,
        "type": kind,
        "distribution": distribution,
        "slug": slug,
        "public": slug is not None,
        "regions": _EVERYWHERE,
        "created_at": "2026-04-23T08:00:00Z",
        "min_disk_size": disk,
        "size_gigabytes": 2.36,
        "tags": [],
        "status": "available",
    }


def IMAGES() -> list[Body]:
    return [image(*row) for row in _IMAGES]
