"""Write a plugin package that works: a provider over HTTP, a fake of its cloud, and its tests."""

from __future__ import annotations

import os
import re
from importlib.resources import files

import jinja2

from codexctl.errors import CodexctlError, UsageError
from codexctl.state.files import describe_os_error

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
MAX_NAME_CHARS = 30


def package_files(name: str) -> dict[str, str]:
    """Path inside the package to text; UsageError for a name that cannot be a provider's."""
    if not _NAME.match(name) or len(name) > MAX_NAME_CHARS:
        raise UsageError(
            f"{name!r} cannot be a provider's name", hint="lower-case letters, digits and hyphens"
        )
    words = name.split("-")
    module = "_".join(words)
    values = {
        "name": name,
        "module": module,
        "env": module.upper(),
        "title": " ".join(word.capitalize() for word in words),
        "cls": "".join(word.capitalize() for word in words),
    }
    templates = {
        "pyproject.toml": "plugin_pyproject.toml.j2",
        "README.md": "plugin_readme.md.j2",
        f"codexctl_{module}.py": "plugin_module.py.j2",
        f"tests/fake_{module}.py": "plugin_fake.py.j2",
        f"tests/test_{module}.py": "plugin_test.py.j2",
    }
    environment = jinja2.Environment(  # noqa: S701 - Python and TOML, not HTML
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    shipped = files("codexctl_templates")
    return {
        path: environment.from_string(shipped.joinpath(source).read_text("utf-8")).render(values)
        for path, source in templates.items()
    }


def write_package(name: str, directory: str | None = None) -> str:
    """Write it to a new folder and answer which; CodexctlError where that is not empty."""
    texts = package_files(name)
    folder = os.path.abspath(directory or f"codexctl-{name}")
    if os.path.isdir(folder) and os.listdir(folder):
        raise CodexctlError(f"{folder} is not empty", hint="choose another --directory")
    for path, text in texts.items():
        target = os.path.join(folder, path)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise describe_os_error(error, target, "write") from error
    return folder
