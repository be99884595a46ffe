"""An AWS of the test's own: moto's server, and a front before it for what moto gets wrong.

moto keeps the state (instances, groups, keys, volumes). The front, on a port of its own, adds what
the real EC2 does and moto does not: access keys that are unknown, expired or may only read; client
tokens that mean something; machines that are pending, then running, and that end slowly; a group
that is in use; 16 KiB of user data; capacity and quota; images named by SSM parameters; a price
list. `fail` puts a fault in the way of an action, as in the fake DigitalOcean.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET  # moto's own answers
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tests.clouds.server import Fault, Faults, Loopback, QuietHandler

KEY, READ_ONLY_KEY, EXPIRED_KEY = (
    "AKIACODEXCTLTEST0001",
    "AKIACODEXCTLTEST0002",
    "ASIAEXPIRED000000003",
)
SECRET_KEY = "very-secret-access-key"
ACCOUNT = "123456789012"
USER_DATA_MAX_BYTES = 16384
START_S = 30.0
READS = ("Describe", "Get")

UBUNTU, UBUNTU_ARM, DEBIAN = (
    "ami-0aaaaaaaaaaaaaa01",
    "ami-0aaaaaaaaaaaaaa02",
    "ami-0aaaaaaaaaaaaaa03",
)
_CANONICAL = "/aws/service/canonical/ubuntu/server/24.04/stable/current"
PARAMETERS = {
    f"{_CANONICAL}/amd64/hvm/ebs-gp3/ami-id": UBUNTU,
    f"{_CANONICAL}/arm64/hvm/ebs-gp3/ami-id": UBUNTU_ARM,
    "/aws/service/debian/release/12/latest/amd64": DEBIAN,
}
# Dollars an hour, or a month for a GiB of disk, in every region of this cloud.
PRICES = {"t3.medium": "0.0472", "t3.large": "0.0944", "t4g.medium": "0.0376"}
DISK_PRICE, ADDRESS_PRICE, SPOT_PRICE = "0.0928", "0.005", "0.0142"


@dataclass
class Answer:
    status: int
    body: bytes = b""


@dataclass
class Request:
    action: str
    region: str
    key: str
    form: dict[str, str]
    json: dict[str, Any] = field(default_factory=dict)

    @property
    def service(self) -> str:
        if self.json:
            return "json"
        return "sts" if self.action == "GetCallerIdentity" else "ec2"


def error(request: Request, code: str, message: str = "no", status: int = 400) -> Answer:
    """An error in the format of the request's service."""
    if request.service == "json":
        return Answer(status, json.dumps({"__type": code, "message": message}).encode())
    inner = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    if request.service == "sts":
        text = f"<ErrorResponse>{inner}<RequestId>req-1</RequestId></ErrorResponse>"
    else:
        text = f"<Response><Errors>{inner}</Errors><RequestID>req-1</RequestID></Response>"
    return Answer(status, text.encode())


def ec2_error(code: str, message: str = "no", status: int = 400) -> Answer:
    return error(Request("", "", "", {}), code, message, status)


class FakeAws(Loopback):
    """The front. `moto` is the port of the server behind it."""

    def __init__(self, moto: int) -> None:
        self._moto = moto
        self.boot_polls = 1
        """How often a new machine is described before it runs; it takes as long to end."""
        self.invisible_polls = 0
        """How often a new machine is not shown at all: EC2 is eventually consistent."""
        self.sold_out = False
        self.vcpu_limit: int | None = None
        self.priced = True
        self.actions: list[str] = []
        self.runs: list[dict[str, str]] = []
        """The forms of RunInstances that were carried out."""
        self.on_run: Callable[[str, str], str] | None = None
        """Given id and user data of a new machine, answers its address; a real one, perhaps."""
        self.on_terminate: Callable[[str], None] = lambda name: None
        self._addresses: dict[str, str] = {}
        self._faults: Faults[Answer] = Faults()
        self._tokens: dict[tuple[str, str], tuple[str, Answer]] = {}
        self._looks: Counter[str] = Counter()
        self._ending: set[str] = set()
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        return self.address

    def fail(self, action: str, answer: Answer | None = None, **more: Any) -> Fault[Answer]:
        """`action` is a pattern for the whole of its name."""
        return self._faults.add(action, answer, **more)

    def mend(self, fault: Fault[Answer]) -> None:
        self._faults.mend(fault)

    # One exchange

    def answer(self, request: Request, headers: dict[str, str], body: bytes) -> Answer | None:
        self.actions.append(request.action)
        with self._lock:
            fault = self._faults.take(request.action)
            if fault is not None and not fault.effect:
                fault.meanwhile()
                return fault.answer
            refused = self._refuse(request)
            answer = refused or self._own(request) or self._forward(headers, body)
            if refused is None and answer.status == 200:
                answer = self._after(request, answer)
            if fault is None:
                return answer
            fault.meanwhile()
            return fault.answer

    def _refuse(self, request: Request) -> Answer | None:
        """What the real cloud refuses and moto lets pass."""
        if request.key == EXPIRED_KEY:
            return error(request, "ExpiredToken" if request.service != "ec2" else "RequestExpired")
        if request.key not in (KEY, READ_ONLY_KEY):
            unknown = "InvalidClientTokenId" if request.service == "sts" else "AuthFailure"
            return error(request, unknown, status=401)
        if request.key == READ_ONLY_KEY and not request.action.startswith(READS):
            return error(request, "UnauthorizedOperation", status=403)
        if request.action == "DeleteSecurityGroup" and self._ending:
            return error(request, "DependencyViolation", "resource has a dependent object")
        if request.action != "RunInstances":
            return None
        if len(base64.b64decode(request.form.get("UserData", ""))) > USER_DATA_MAX_BYTES:
            return error(request, "InvalidParameterValue", "User data is limited to 16384 bytes")
        used = self._tokens.get((request.region, request.form["ClientToken"]))
        if used is not None:
            same = used[0] == _digest(request.form)
            return used[1] if same else error(request, "IdempotentParameterMismatch")
        if self.vcpu_limit is not None:
            return error(request, "VcpuLimitExceeded", "more vCPU capacity than your limit")
        if self.sold_out:
            return error(request, "InsufficientInstanceCapacity", "no capacity", status=500)
        return None

    def _own(self, request: Request) -> Answer | None:
        """What moto cannot answer."""
        if request.action == "GetParameter":
            name = request.json["Name"]
            if name not in PARAMETERS:
                return error(request, "ParameterNotFound")
            value = {"Parameter": {"Name": name, "Type": "String", "Value": PARAMETERS[name]}}
            return Answer(200, json.dumps(value).encode())
        if request.action == "GetProducts":
            return Answer(200, json.dumps({"PriceList": self._products(request)}).encode())
        if request.action == "DescribeSpotPriceHistory":
            item = (
                f"<item><instanceType>{request.form['InstanceType.1']}</instanceType>"
                f"<productDescription>Linux/UNIX</productDescription><spotPrice>{SPOT_PRICE}"
                f"</spotPrice><availabilityZone>{request.region}a</availabilityZone></item>"
            )
            name = "DescribeSpotPriceHistoryResponse"
            return Answer(
                200, f"<{name}><spotPriceHistorySet>{item}</spotPriceHistorySet></{name}>".encode()
            )
        return None

    def _products(self, request: Request) -> list[str]:
        wanted = {part["Field"]: part["Value"] for part in request.json["Filters"]}
        if not self.priced:
            return []
        if request.json["ServiceCode"] == "AmazonVPC":
            free = _product({"usagetype": "EUW2-PublicIPv4:IdleAddress"}, "0.007")
            return [free, _product({"usagetype": "EUW2-PublicIPv4:InUseAddress"}, ADDRESS_PRICE)]
        if wanted.get("volumeApiName") == "gp3":
            return [_product({"volumeApiName": "gp3"}, DISK_PRICE)]
        sizes = [wanted["instanceType"]] if "instanceType" in wanted else list(PRICES)
        return [_product({"instanceType": s}, PRICES[s]) for s in sizes if s in PRICES]

    def _forward(self, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._moto, timeout=START_S)
        try:
            connection.request("POST", "/", body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def _after(self, request: Request, answer: Answer) -> Answer:
        """The same answer with the time that things take at the real cloud."""
        if request.action == "RunInstances":
            self.runs.append(request.form)
            token = (request.region, request.form["ClientToken"])
            self._tokens[token] = (_digest(request.form), answer)
            if self.on_run is not None:
                name = ET.fromstring(answer.body).findtext(".//{*}instanceId") or ""
                user_data = base64.b64decode(request.form["UserData"]).decode()
                self._addresses[name] = self.on_run(name, user_data)
        if request.action == "TerminateInstances":
            ids = [value for name, value in request.form.items() if name.startswith("InstanceId")]
            for name in set(ids) - self._ending:
                self._looks[name] = 0
                self.on_terminate(name)
            self._ending.update(ids)
        if request.action != "DescribeInstances":
            return answer
        root = ET.fromstring(answer.body)  # moto's own answer
        for reservation in root.findall(".//{*}instancesSet"):
            for item in list(reservation):
                if not self._aged(item):
                    reservation.remove(item)
        return Answer(200, ET.tostring(root))

    def _aged(self, item: ET.Element) -> bool:
        """Set the state of an instance by how often it was looked at; False: not shown yet."""
        name = item.findtext("{*}instanceId") or ""
        address = item.find("{*}ipAddress")
        if address is not None:
            address.text = self._addresses.get(name, address.text)
        self._looks[name] += 1
        looks = self._looks[name]
        state = item.find("{*}instanceState")
        assert state is not None
        if name in self._ending:
            if looks > self.boot_polls:
                self._ending.discard(name)
            else:
                _put(state, "code", "32")
                _put(state, "name", "shutting-down")
        elif looks <= self.invisible_polls:
            return False
        elif looks <= self.boot_polls and state.findtext("{*}name") == "running":
            _put(state, "code", "0")
            _put(state, "name", "pending")
            for address in ("ipAddress", "dnsName"):
                for found in item.findall("{*}" + address):
                    item.remove(found)
        return True


def _put(state: ET.Element, name: str, text: str) -> None:
    found = state.find("{*}" + name)
    assert found is not None
    found.text = text


def _product(attributes: dict[str, str], price: str) -> str:
    dimension = {"pricePerUnit": {"USD": price}, "unit": "Hrs"}
    terms = {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": dimension}}}}
    return json.dumps({"product": {"attributes": attributes}, "terms": terms})


def _digest(form: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


class _Handler(QuietHandler):
    fake: FakeAws

    def do_POST(self) -> None:
        body = self.body()
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/", self.headers["Authorization"] or "")
        key, region = scope.groups() if scope else ("", "")
        target = self.headers.get("X-Amz-Target", "")
        if target:
            request = Request(target.rpartition(".")[2], region, key, {}, json.loads(body))
        else:
            form = dict(parse_qsl(body.decode(), keep_blank_values=True))
            request = Request(form["Action"], region, key, form)
        answer = self.fake.answer(request, headers, body)
        with contextlib.suppress(OSError):
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/x-amz-json-1.1" if target else "text/xml")
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)


FakeAws.handler = _Handler


def _image(ami: str, name: str, architecture: str, root: str) -> dict[str, Any]:
    return {
        "ami_id": ami,
        "name": name,
        "owner_id": "099720109477",
        "public": True,
        "virtualization_type": "hvm",
        "architecture": architecture,
        "root_device_name": root,
        "root_device_type": "ebs",
        "hypervisor": "xen",
    }


@contextlib.contextmanager
def moto_server(folder: Path) -> Iterator[int]:
    """moto's server in a process of its own; the port."""
    images = [
        _image(UBUNTU, "ubuntu-noble-24.04-amd64-server", "x86_64", "/dev/sda1"),
        _image(UBUNTU_ARM, "ubuntu-noble-24.04-arm64-server", "arm64", "/dev/sda1"),
        _image(DEBIAN, "debian-12-amd64", "x86_64", "/dev/xvda"),
    ]
    path = folder / "images.json"
    path.write_text(json.dumps(images))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "MOTO_AMIS_PATH": str(path), "MOTO_ACCOUNT_ID": ACCOUNT}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "moto's server did not start"
                assert time.monotonic() < end, "moto's server does not listen"
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


def reset(moto: int) -> None:
    """Forget everything that moto knows."""
    connection = http.client.HTTPConnection("127.0.0.1", moto, timeout=START_S)
    connection.request("POST", "/moto-api/reset")
    connection.getresponse().read()
    connection.close()
