"""Render the templates that ship with codexctl, or the person's own of the same name.

The person's live in `templates/` of the home. Undefined variables are errors (StrictUndefined).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from codexctl.errors import CodexctlError
from codexctl.paths import Home

MAX_TEMPLATE_BYTES = 1 << 20


def template_source(home: Home, name: str, path: str = "") -> tuple[str, str]:
    """(where, text): of `path` if given, else the home's own, else the one that ships."""
    own = path or home.join("templates", name)
    try:
        with open(own, encoding="utf-8") as file:
            return own, file.read(MAX_TEMPLATE_BYTES)
    except FileNotFoundError as error:
        if path:
            raise CodexctlError(f"there is no template {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CodexctlError(f"cannot read the template {own}: {error}") from error
    source = files("codexctl_templates").joinpath(name)
    return f"codexctl's {name}", source.read_text(encoding="utf-8")


def render(
    home: Home,
    template: str,
    /,
    *,
    path: str = "",
    filters: Mapping[str, Callable[..., str]] | None = None,
    **values: Any,
) -> str:
    """The text; CodexctlError names the template, the line and what is wrong with it."""
    import jinja2

    where, source = template_source(home, template, path)
    environment = jinja2.Environment(  # noqa: S701 - ssh config and YAML, not HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = ssh_quoted
    environment.filters["yaml"] = yaml_scalar
    environment.filters.update(filters or {})
    try:
        return environment.from_string(source).render(**values)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None) or _line_in_template(error)
        raise CodexctlError(
            f"{where}{f' line {line}' if line else ''} does not render: {error.message}",
            hint=f"mend it, or move {os.path.basename(where)} away to use the one that ships",
        ) from error


def _line_in_template(error: BaseException) -> int | None:
    step, line = error.__traceback__, None
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    return line


def ssh_quoted(value: str) -> str:
    """A path for ssh_config: quoted, percent signs doubled (they begin ssh's own tokens)."""
    if '"' in value or "\n" in value:
        raise CodexctlError(f"ssh_config cannot hold the path {value!r}")
    return '"' + value.replace("%", "%%") + '"'


def yaml_scalar(value: object) -> str:
    """A text, number, truth value or list of them as YAML on one line; nothing in it can end it."""
    import json

    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(yaml_scalar, value))}]"
    if isinstance(value, str):
        import yaml

        # JSON's surrogate pairs mean something else in YAML, so its own writer quotes it.
        return yaml.safe_dump(value, default_style='"', width=math.inf).rstrip("\n")
    return json.dumps(value)
