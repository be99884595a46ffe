"""Imports run downhill (docs/architecture.md): this reads them and fails on one that climbs.

Also: values and cores touch no socket, clock, log or random source; the top help and the modules of
commands import nothing heavy; no file outgrows 500 lines.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500

VALUES, CORES, TOOLS, ADAPTERS, CLI = range(5)
NAMES = ("values", "cores", "tools", "adapters", "cli")

# The longest prefix of a module's name decides.
LAYERS = {
    "codexctl": VALUES,  # the package itself: its version
    "codexctl.errors": VALUES,
    "codexctl.secret": VALUES,
    "codexctl.durations": VALUES,
    "codexctl.hookspecs": VALUES,
    "codexctl.wire": VALUES,
    "codexctl.noise": CORES,
    "codexctl.relay.authorizations": CORES,
    "codexctl.relay.core": CORES,
    "codexctl.relay.effects": CORES,
    "codexctl.relay.limits": CORES,
    "codexctl.relay.room": CORES,
    "codexctl.session.core": CORES,
    "codexctl.session.records": CORES,
    "codexctl.session.channel": CORES,
    "codexctl.agent.approvals": CORES,
    "codexctl.agent.attach_rules": CORES,
    "codexctl.agent.handoff.core": CORES,
    "codexctl.agent.mode_order": CORES,
    "codexctl.agent.errors": VALUES,
    "codexctl.agent.schema": CORES,
    "codexctl.provision.core": CORES,
    "codexctl.provision.errors": CORES,
    "codexctl.provision.model": CORES,
    "codexctl.agent.notify": CORES,
    "codexctl.client.thread_view": CORES,
    "codexctl.client.patch": CORES,
    "codexctl.paths": TOOLS,
    "codexctl.state": TOOLS,
    "codexctl.transfer": TOOLS,
    "codexctl.relay": ADAPTERS,
    "codexctl.agent": ADAPTERS,
    "codexctl.session": ADAPTERS,
    "codexctl.host": ADAPTERS,
    "codexctl.client": ADAPTERS,
    "codexctl.client.executor.stream": CORES,
    "codexctl.provision": ADAPTERS,
    "codexctl_plugins": ADAPTERS,
    "codexctl.cli": CLI,
    "codexctl.__main__": CLI,
}

# What a provider builds on (docs/plugins.md); the last reads the person's own ssh config.
FOR_PROVIDERS = {
    "codexctl.errors", "codexctl.secret", "codexctl.durations", "codexctl.hookspecs",
    "codexctl.provision.errors", "codexctl.provision.model", "codexctl.client.ssh_config",
}  # fmt: skip

# What would give a value or a core a socket, a clock, a log, a thread or chance.
IMPURE = {
    "asyncio", "http", "logging", "random", "secrets", "select", "selectors", "shutil", "signal",
    "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip

# Not before the function that needs it, in anything that help or completion may load.
HEAVY = {
    "asyncio", "asyncssh", "boto3", "botocore", "cryptography", "digitalocean", "h11", "jinja2",
    "noise", "picows", "pluggy", "requests", "rich", "segno", "spake2", "sqlite3", "ssl",
    "subprocess", "uvloop", "yaml",
}  # fmt: skip

# The top help and the version do not even need these.
HEAVY_FOR_HELP = HEAVY | {
    "click",
    "dataclasses",
    "importlib.metadata",
    "inspect",
    "typing_extensions",
}


def _sources() -> dict[str, Path]:
    """Every module of the product by its name."""
    out = {}
    for folder, package in (("codexctl", "codexctl"), ("plugins", "codexctl_plugins")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            out[".".join(parts).removesuffix(".__init__")] = path
    return out


SOURCES = _sources()


def _layer(module: str) -> int:
    name = module
    while name not in LAYERS:
        name = name.rpartition(".")[0]
    assert name != "codexctl" or module == "codexctl", f"give {module} a layer"
    return LAYERS[name]


def _imports(importer: str) -> Iterator[tuple[str, int]]:
    """Names that a module imports at run time, with the line; `from a import b` is a, or a.b."""
    path = SOURCES[importer]
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: len(package.split(".")) + 1 - node.level]
            parts = [*(outer if node.level else ()), *([node.module] if node.module else ())]
            module = ".".join(parts)
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner if inner in SOURCES else module), node.lineno


def test_imports_run_downhill() -> None:
    climbing = [
        f"{path.relative_to(ROOT)}:{line}: {NAMES[_layer(module)]} imports {name} "
        f"({NAMES[_layer(name)]})"
        for module, path in SOURCES.items()
        for name, line in _imports(module)
        if name.split(".")[0] in ("codexctl", "codexctl_plugins") and _layer(name) > _layer(module)
    ]
    assert climbing == []


def test_values_and_cores_do_no_input_or_output() -> None:
    impure = [
        f"{path.relative_to(ROOT)}:{line}: {NAMES[_layer(module)]} imports {name}"
        for module, path in SOURCES.items()
        if _layer(module) <= CORES
        for name, line in _imports(module)
        if name.split(".")[0] in IMPURE
    ]
    assert impure == []


def test_a_provider_uses_only_what_a_third_party_can() -> None:
    private = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path in SOURCES.items()
        if module.startswith("codexctl_plugins")
        for name, line in _imports(module)
        if name.startswith("codexctl.")
        and not any(f"{name}.".startswith(f"{public}.") for public in FOR_PROVIDERS)
    ]
    assert private == []


def test_every_package_is_shipped() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        shipped = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    made = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    assert made - shipped == set()


def test_no_file_outgrows_its_reader() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in SOURCES.values()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}


def _loaded(code: str, home: Path) -> set[str]:
    """The modules that are loaded after `code`, in a process of its own."""
    script = f"import sys\n{code}\nsys.stdout.flush()\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "CODEXCTL_HOME": str(home)},
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str, tmp_path: Path) -> None:
    code = (
        f"sys.argv = ['codexctl', {argument!r}]\n"
        "from codexctl.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code"
    )
    # Against a bare start: an editable install brings modules of its own.
    brought = _loaded(code, tmp_path) - _loaded("", tmp_path)
    assert brought & HEAVY_FOR_HELP == set()


def test_a_command_module_imports_nothing_heavy(tmp_path: Path) -> None:
    # What a command imports when it runs, as cli/reap.py, may be heavy; what defines one may not.
    modules = [
        module
        for module in SOURCES
        if _layer(module) == CLI and any(name == "click" for name, _ in _imports(module))
    ]
    bare = _loaded("import click", tmp_path)
    if not (_loaded("\n".join(f"import {m}" for m in modules), tmp_path) - bare) & HEAVY:
        return
    blame = {m: sorted((_loaded(f"import {m}", tmp_path) - bare) & HEAVY) for m in modules}
    assert {module: heavy for module, heavy in blame.items() if heavy} == {}


def test_every_row_of_the_command_table_names_a_command() -> None:
    import click

    from codexctl.cli.main import root_group

    group = root_group()
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert isinstance(command, click.Command)
        assert command.help, f"{name} has no help"
