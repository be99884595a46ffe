"""Find the provider plugins: entry points of one group, each loaded apart from the others.

A plugin that breaks on load, implements a hook that does not exist, or claims a name that is taken
is named with its reason and left out; it is never why codexctl does not start. Nothing here is
imported for help or completion of other commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from codexctl import hookspecs
from codexctl.errors import CodexctlError
from codexctl.provision.errors import UnknownChoice
from codexctl.provision.model import Capabilities, Provider

MAX_PROBLEM_CHARS = 300
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point and what became of it."""

    name: str
    """The entry point's name."""
    module: str
    package: str
    """The distribution that ships it, as pip calls it."""
    version: str
    provider: str | None = None
    """The provider's name; None where it did not load."""
    problem: str = ""
    """Why it was left out, one clause."""


@dataclass(slots=True)
class Plugins:
    """What is installed: the providers that work, and every plugin with its state."""

    providers: dict[str, Provider] = field(default_factory=dict)
    found: list[Plugin] = field(default_factory=list)

    def provider(self, name: str) -> Provider:
        """The provider of this name; UnknownChoice with the nearest, or the reason it is broken."""
        if name in self.providers:
            return self.providers[name]
        for plugin in self.found:
            if plugin.problem and name in (plugin.name, plugin.provider):
                raise CodexctlError(
                    f"the plugin {plugin.name} of {plugin.package} does not load: {plugin.problem}",
                    hint=f"codexctl plugin update {plugin.package}, or "
                    f"codexctl plugin remove {plugin.package}",
                )
        raise UnknownChoice("provider", name, self.providers)

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.found if plugin.problem]


def load_plugins(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Load every plugin of `points` (installed ones by default); never raises for a plugin's fault.

    First-party plugins come first, then by package name, so that nobody takes over their names.
    """
    plugins = Plugins()
    for point in sorted(points if points is not None else _installed(), key=_rank):
        plugin, provider = load_one(point, taken=plugins.providers)
        plugins.found.append(plugin)
        if provider is not None:
            plugins.providers[provider.name] = provider
    return plugins


def _installed() -> Sequence[EntryPoint]:
    return list(entry_points(group=hookspecs.ENTRY_POINT_GROUP))


def _rank(point: EntryPoint) -> tuple[bool, str, str]:
    package = _package(point)
    return (package != "codexctl", package, point.name)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"


def load_one(point: EntryPoint, *, taken: Iterable[str] = ()) -> tuple[Plugin, Provider | None]:
    """Load one entry point and check it; the provider is None exactly where `problem` is set."""
    version = point.dist.version if point.dist is not None else "?"

    def state(provider: str | None, problem: str = "") -> Plugin:
        return Plugin(point.name, point.value, _package(point), version, provider, problem)

    try:
        provider = _provider_of(point.load(), point.name)
    except (Exception, SystemExit) as error:
        # Whatever a stranger's module raises while it is imported ends here, with its name.
        return state(None, f"{type(error).__name__}: {_one_line(error)}"), None
    if provider.name in taken:
        return state(provider.name, f"the provider name {provider.name} is taken already"), None
    return state(provider.name), provider


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:MAX_PROBLEM_CHARS] or "no message"


def _provider_of(module: Any, name: str) -> Provider:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=name)
    manager.check_pending()
    answers: list[Any] = manager.hook.codexctl_provider()
    if not answers:
        raise TypeError("it implements no codexctl_provider hook")
    return check_provider(answers[0])


def check_provider(value: Any) -> Provider:
    """The provider, when it is one and says what it must; TypeError names what is wrong."""
    if not isinstance(value, Provider):
        raise TypeError(f"codexctl_provider answered {type(value).__name__}, not a Provider")
    name = getattr(value, "name", None)
    if not isinstance(name, str) or not _NAME.match(name):
        raise TypeError(f"its name {name!r} is not a lower-case label")
    if not isinstance(getattr(value, "summary", None), str):
        raise TypeError("it has no summary")
    if not isinstance(getattr(value, "capabilities", None), Capabilities):
        raise TypeError("it tells no capabilities")
    return value
