"""Loading plugins: each apart from the others, the broken ones named and left out."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from codexctl.errors import CodexctlError
from codexctl.provision.errors import UnknownChoice
from codexctl.provision.plugins import load_plugins
from tests.provision.reference import ReferenceProvider

GROUP = "codexctl.plugins"
HEAD = "from codexctl.hookspecs import hookimpl\n"


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make an entry point of a module with this text."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, text: str) -> EntryPoint:
        module = f"a_plugin_for_tests_{name}"
        (tmp_path / f"{module}.py").write_text(text)
        sys.modules.pop(module, None)
        return EntryPoint(name, module, GROUP)

    return make


GOOD = EntryPoint("reference", "tests.provision.reference", GROUP)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("x = (", "SyntaxError"),
        ("", "no codexctl_provider hook"),
        (f"{HEAD}@hookimpl\ndef codexctl_provide(): ...", "unknown hook 'codexctl_provide'"),
        (f"{HEAD}@hookimpl\ndef codexctl_provider(x): ...", "Argument(s) {'x'} are declared"),
        (f"{HEAD}@hookimpl\ndef codexctl_provider(): return 3", "answered int"),
        (f"{HEAD}@hookimpl\ndef codexctl_provider(): return None", "no codexctl_provider hook"),
        (f"{HEAD}@hookimpl\ndef codexctl_provider(): 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_is_named_and_left_out(point, text: str, reason: str) -> None:
    plugins = load_plugins([point("broken", text), GOOD])
    assert list(plugins.providers) == ["reference"]
    assert [(p.name, reason in p.problem) for p in plugins.broken] == [("broken", True)], [
        p.problem for p in plugins.broken
    ]
    with pytest.raises(CodexctlError, match="does not load"):
        plugins.provider("broken")


def test_a_name_that_is_taken_stays_with_the_first() -> None:
    other = EntryPoint("second", "tests.provision.reference", GROUP)
    plugins = load_plugins([GOOD, other])
    assert [p.problem for p in plugins.found] == [
        "",
        "the provider name reference is taken already",
    ]


def test_the_own_providers_load_and_say_what_they_can() -> None:
    plugins = load_plugins()
    assert {"aws", "digitalocean", "ssh"} <= set(plugins.providers)
    assert not plugins.broken


def test_an_unknown_provider_names_the_nearest() -> None:
    with pytest.raises(UnknownChoice) as caught:
        load_plugins([GOOD]).provider("referenze")
    assert "reference" in caught.value.hint


@pytest.mark.parametrize("name", ["", "Upper", "a b", "-x", None, 3])
def test_a_provider_needs_a_name(monkeypatch: pytest.MonkeyPatch, name: object) -> None:
    monkeypatch.setattr(ReferenceProvider, "name", name)
    assert "label" in load_plugins([GOOD]).broken[0].problem
