"""How a provision is shown: the plan before it, the stages while it runs, what to do next after."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codexctl.provision.journal import Settings, Workspace
    from codexctl.provision.model import Plan, Price, Provider
    from codexctl.provision.readiness import Stage

STAGE_WIDTH = 12


def money(price: Price) -> str:
    """`0.0357 USD an hour (24.00 a month)`."""
    hourly = f"{price.hourly.normalize():f}"
    return f"{hourly} {price.currency} an hour ({price.monthly:.2f} a month)"


def plan_record(provider: Provider, name: str, plan: Plan, settings: Settings) -> dict[str, Any]:
    return {
        "name": name,
        "provider": provider.name,
        "region": plan.region,
        "size": plan.size,
        "image": plan.image,
        "price_hour": None if plan.price is None else str(plan.price.hourly),
        "price_month": None if plan.price is None else str(plan.price.monthly),
        "currency": None if plan.price is None else plan.price.currency,
        "ttl_s": settings.ttl_s,
        "idle_stop_s": settings.idle_stop_s,
        "user": plan.user or settings.user,
        "relay": settings.relay or None,
        "notes": list(plan_notes(provider, plan, settings)),
    }


def plan_text(provider: Provider, name: str, plan: Plan, settings: Settings) -> str:
    """What will be made and what it costs, as lines for a person."""
    creates = provider.capabilities.creates
    rows = [("workspace", name)]
    if creates:
        rows += [("machine", f"{plan.size} in {plan.region}, {plan.image}")]
        rows += [("price", "not told by the provider" if plan.price is None else money(plan.price))]
    else:
        rows += [("machine", f"{plan.region}, which exists; nothing of it is ever destroyed")]
    rows += [("user", plan.user or f"{settings.user}, {'with' if settings.sudo else 'no'} sudo")]
    lines = [f"  {label + ':':<{STAGE_WIDTH}}{text}" for label, text in rows]
    lines += [f"  - {note}" for note in plan_notes(provider, plan, settings)]
    return "\n".join(lines)


def plan_notes(provider: Provider, plan: Plan, settings: Settings) -> list[str]:
    """What is worth knowing before the confirmation: the end of it, and what stopping saves."""
    from codexctl.durations import format_duration

    able, notes = provider.capabilities, list(plan.lines)
    if settings.relay and settings.pair:
        notes.append(f"it is paired with this device through {settings.relay}")
    if not able.creates:
        return notes
    if settings.ttl_s is None:
        notes.append("it bills until you destroy it (no --ttl)")
    elif able.ends_itself:
        notes.append(f"it ends itself after {format_duration(settings.ttl_s)}")
    else:
        notes.append(
            f"it expires after {format_duration(settings.ttl_s)}: this cloud does not end it, "
            "codexctl workspace reap does (--watch where the credentials are)"
        )
    if able.stops:
        notes.append(f"stopping it saves {able.stop_saves}")
    if settings.idle_stop_s is not None:
        notes.append(
            f"codexctl workspace reap --watch stops it when idle for "
            f"{format_duration(settings.idle_stop_s)}"
        )
    if settings.bare:
        notes.append("bare: without codex and codexctl")
    return notes


def ready_record(workspace: Workspace, now: int) -> dict[str, Any]:
    """The one record of a workspace that every command shows."""
    machine, price = workspace.machine, workspace.plan.price
    spent = workspace.spent(now)
    return {
        "name": workspace.name,
        "id": workspace.id,
        "provider": workspace.provider,
        "region": workspace.plan.region,
        "size": workspace.plan.size or None,
        "stage": _stage(workspace),
        "power": workspace.power,
        "address": machine.address if machine is not None else None,
        "port": machine.port if machine is not None else None,
        "user": workspace.user,
        "machine_id": machine.ref.machine_id if machine is not None else None,
        "created_at": workspace.created_at,
        "age_s": max(now - workspace.created_at, 0),
        "expires_at": workspace.expires_at,
        "expired": workspace.expired(now),
        "price_hour": None if price is None else str(price.hourly),
        "spent": None if spent is None else str(spent),
        "currency": None if price is None else price.currency,
        "error": workspace.error or None,
    }


def _stage(workspace: Workspace) -> str:
    if workspace.ended_at is not None:
        return "gone"
    return workspace.stage if workspace.goal == "up" else "destroying"


def readable(record: dict[str, Any], now: int) -> dict[str, Any]:
    """The record of a workspace with lengths of time, dates and money as a person reads them."""
    from datetime import UTC, datetime

    from codexctl.durations import format_duration

    def date(at: int) -> str:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"

    at, spent = record["expires_at"], record["spent"]
    expires = "never" if at is None else f"in {format_duration(at - now)}, {date(at)}"
    if record["expired"]:
        expires = f"EXPIRED {date(at)}"
    elif record["stage"] == "gone":
        expires = "-"
    hour = record["price_hour"]
    return {
        "name": record["name"],
        "state": record["power"] if record["stage"] == "ready" else record["stage"],
        **{name: record[name] for name in ("provider", "region", "size", "machine_id")},
        **{name: record[name] for name in ("address", "port", "user", "id")},
        "created": date(record["created_at"]),
        "age": format_duration(record["age_s"]),
        "expires": expires,
        "price": None if hour is None else f"{hour} {record['currency']} an hour",
        "spent": None if spent is None else f"{float(spent):.2f} {record['currency']}",
        "error": record["error"],
    }


def next_steps(workspace: Workspace) -> str:
    name = workspace.name
    lines = [f"{name} is ready", "", f"  ssh {name}", f"  codexctl exec {name} -- COMMAND"]
    lines += [f"  codexctl workspace destroy {name}"]
    return "\n".join(lines)


class StageView:
    """Stages as they come: JSON lines on stdout, or lines on stderr (rewritten on a terminal)."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._live = not as_json and sys.stderr.isatty()
        self._open = False

    def __enter__(self) -> StageView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            sys.stderr.write("\n")

    def __call__(self, stage: Stage) -> None:
        from codexctl.cli.output import emit_line, paint, printable

        if self._as_json:
            emit_line({"event": "stage", **{k: getattr(stage, k) for k in stage.__slots__}})
            return
        if stage.state == "waiting" and not self._live:
            return
        colour = {"ok": "green", "failed": "red", "skipped": "dim"}.get(stage.state, "yellow")
        mark = paint(f"{stage.state:<8}", colour, sys.stderr)
        text = f"{stage.stage:<{STAGE_WIDTH}}{mark}{stage.elapsed_s:7.1f} s  "
        text += printable(stage.detail)
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text[:160]}")
            self._open = stage.state == "waiting"
            if self._open:
                sys.stderr.flush()
                return
            sys.stderr.write("\n")
        else:
            sys.stderr.write(f"{text.rstrip()}\n")
        sys.stderr.flush()
