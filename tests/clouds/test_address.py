"""From where ssh is let in."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from codexctl_plugins import _address as address

from codexctl.errors import UsageError
from codexctl.provision.errors import ProviderUnreachable


class Service(http.server.BaseHTTPRequestHandler):
    answer = b"198.51.100.9\n"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Service]]:
    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        port = server.server_address[1]
        monkeypatch.setenv("CODEXCTL_ADDRESS_SERVICE", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "*")
        yield Service
        server.shutdown()
        thread.join()


def test_anywhere_without_a_word() -> None:
    assert address.sources(()) == ["0.0.0.0/0", "::/0"]
    assert address.told(address.sources(())) == "anywhere"


def test_addresses_and_networks() -> None:
    networks = address.sources(("203.0.113.7", "10.0.0.0/8", "2001:db8::1"))
    assert networks == ["203.0.113.7/32", "10.0.0.0/8", "2001:db8::1/128"]
    assert address.told(networks[:2]) == "203.0.113.7/32 and 10.0.0.0/8"


@pytest.mark.parametrize("typed", ["", "me", "203.0.113.7/8", "203.0.113.0/40", "0.0.0.0/0;x"])
def test_what_is_no_network_is_refused(typed: str) -> None:
    with pytest.raises(UsageError):
        address.sources((typed,))


def test_here_asks_the_service(service: type[Service]) -> None:
    assert address.sources(("here",)) == ["198.51.100.9/32"]


def test_here_with_an_odd_answer_is_told(
    service: type[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "answer", b"<html>")
    with pytest.raises(ProviderUnreachable) as caught:
        address.sources(("here",))
    assert "--ssh-from" in caught.value.hint


def test_here_without_the_service_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEXCTL_ADDRESS_SERVICE", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ProviderUnreachable):
        address.sources(("here",))
    monkeypatch.setenv("CODEXCTL_ADDRESS_SERVICE", "ftp://example.com")
    with pytest.raises(UsageError):
        address.sources(("here",))
