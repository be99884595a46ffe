"""What the relay answers that is not JSON: the page behind a pairing URL, and the metrics."""

from __future__ import annotations

from codexctl.relay.address import is_loopback
from codexctl.relay.calls import Request

_HEAD = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 3rem auto; padding: 0 1rem;
       color: #1c1c1c; background: #fff }
code { background: #eee; padding: .1em .3em; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #161616 }
       code { background: #333 } }
</style>
"""

PAIR_PAGE = (
    _HEAD
    + b"""<title>Pair with a codexctl host</title>
<h1>This is a pairing link</h1>
<p>It lets one machine control a codexctl host, once, for a few minutes.
On the machine that is to control the host, run</p>
<p><code>codexctl pair 'THE WHOLE ADDRESS OF THIS PAGE'</code></p>
<p>with everything behind the <code>#</code>. That part holds the secret. Your browser has not sent
it to this relay, and you should not send it to anybody.</p>
</html>
"""
)

THREAD_PAGE = (
    _HEAD
    + b"""<title>A codexctl thread</title>
<h1>This is the link of a thread</h1>
<p>On a machine that is paired with its host, run</p>
<p><code>codexctl thread watch 'THE WHOLE ADDRESS OF THIS PAGE'</code></p>
<p>What stands behind the <code>#</code> names the host and the thread. It is no secret: only a
paired device can do anything with it. Your browser has not sent it to this relay.</p>
</html>
"""
)

PAGES = {"/pair": PAIR_PAGE, "/thread": THREAD_PAGE}

_HELP = {
    "codexctl_relay_hosts": ("gauge", "Environments whose host is connected"),
    "codexctl_relay_devices": ("gauge", "WebSockets of devices"),
    "codexctl_relay_streams": ("gauge", "Streams claimed"),
    "codexctl_relay_congested": ("gauge", "Links whose socket takes less than is sent to it"),
    "codexctl_relay_queued_bytes": ("gauge", "Bytes that wait for congested links"),
    "codexctl_relay_pending_connections": ("gauge", "Connections that are not a WebSocket (yet)"),
    "codexctl_relay_draining": ("gauge", "1 while the relay is about to end"),
    "codexctl_relay_frames_total": ("counter", "Frames forwarded"),
    "codexctl_relay_forwarded_bytes_total": ("counter", "Bytes of frames forwarded"),
    "codexctl_relay_opened_total": ("counter", "WebSockets opened"),
    "codexctl_relay_requests_total": ("counter", "HTTP calls answered"),
    "codexctl_relay_refused_total": ("counter", "HTTP calls answered with an error"),
    "codexctl_relay_bad_requests_total": ("counter", "Connections that did not speak HTTP"),
    "codexctl_relay_timeouts_total": ("counter", "Connections closed for being slow or idle"),
    "codexctl_relay_evicted_total": ("counter", "Connections closed to make room for newer ones"),
    "codexctl_relay_violations_total": ("counter", "WebSockets closed for a breach of protocol"),
    "codexctl_relay_slow_total": ("counter", "Links cut because they did not read"),
    "codexctl_relay_resets_total": ("counter", "Reset frames sent by the relay itself"),
    "codexctl_relay_silent_total": ("counter", "Links cut because they answered no ping"),
}


def metrics(values: dict[str, int]) -> bytes:
    """Prometheus text of the counts; names without their prefix."""
    lines = []
    for name, (kind, text) in _HELP.items():
        short = name.removeprefix("codexctl_relay_").removesuffix("_total")
        lines += [
            f"# HELP {name} {text}.",
            f"# TYPE {name} {kind}",
            f"{name} {values.get(short, 0)}",
        ]
    return ("\n".join(lines) + "\n").encode()


def is_local(request: Request, peer: str) -> bool:
    """Whether a request surely comes from this machine and was not passed on by a proxy.

    The Host header guards against a web page that has its name resolve to 127.0.0.1.
    """
    forwarded = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return (
        is_loopback(peer)
        and is_loopback(name.strip("[]"))
        and not any(header in request.headers for header in forwarded)
    )
