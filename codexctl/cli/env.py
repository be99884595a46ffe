"""`codexctl env NAME`: what points the official agent at a host."""

from __future__ import annotations

import click

from codexctl.cli.complete import complete_paired
from codexctl.cli.output import emit, json_option
from codexctl.cli.target import is_official, need_host
from codexctl.paths import Home

SHELLS = ("sh", "fish", "powershell")


@click.command()
@click.argument("name", shell_complete=complete_paired)
@click.option(
    "--shell",
    type=click.Choice(SHELLS),
    help="For which shell; found from SHELL if absent (bash, zsh and their like are `sh`).",
)
@click.option(
    "--environments-toml",
    "toml",
    is_flag=True,
    help="For a codexctl host: write its entry into codex's environments.toml.",
)
@click.option(
    "--folder",
    metavar="DIR",
    help="With it: a folder of this machine that stands for NAME's workspace.",
)
@click.option(
    "--default",
    "make_default",
    is_flag=True,
    help="With it: let codex use NAME where no environment is named, as the first entry does.",
)
@json_option
def env(
    name: str,
    shell: str | None,
    toml: bool,
    folder: str | None,
    make_default: bool,
    as_json: bool,
) -> None:
    """Print the variables by which the official codex runs its commands on the executor NAME.

    \b
        eval "$(codexctl env NAME)"
        codex exec 'run the tests'

    For a codexctl host, write the entry of environments.toml by which it does so; what else is in
    that file stays as it is:

    \b
        codexctl env devbox --environments-toml --folder ~/project
        codex -C ~/project

    The agent and its model stay here; commands and file edits happen where `codex exec-server
    --remote` runs. One variable holds the token that NAME was added with, so that a token for this
    one executor is best (codexctl relay token create --environment ID).
    """
    import os

    from codexctl.errors import UsageError

    record = need_host(Home.from_env(), name)
    if toml and is_official(record):
        raise UsageError(
            f"{record.name} is an official executor, which the official codex reaches by itself",
            hint=f'eval "$(codexctl env {record.name})"',
        )
    if toml:
        _write(record.name, folder, make_default, as_json)
        return
    if folder is not None or make_default:
        raise UsageError("--folder and --default belong to --environments-toml")
    if not is_official(record):
        raise UsageError(
            f"{record.name} is a codexctl host, which the official codex reaches through codexctl",
            hint=f"codexctl env {record.name} --environments-toml",
        )
    if record.pin is not None:
        raise UsageError(
            f"the relay of {record.name} has a certificate of its own, which codex does not trust",
            hint="give the relay a certificate of a known authority, or reach it by a tunnel",
        )
    variables = {
        "CODEX_EXEC_SERVER_NOISE_REGISTRY_URL": record.relay,
        "CODEX_EXEC_SERVER_NOISE_ENVIRONMENT_ID": record.environment_id,
        "CODEX_EXEC_SERVER_NOISE_AUTH_TOKEN": record.token.reveal(),
    }
    own = os.path.basename(os.environ.get("SHELL", "sh"))
    emit(variables, as_json, text=_script(variables, shell or ("fish" if own == "fish" else "sh")))


def _write(name: str, folder: str | None, make_default: bool, as_json: bool) -> None:
    import os

    from codexctl.cli.env_toml import environments_path, write_environment
    from codexctl.cli.output import notice
    from codexctl.errors import UsageError

    if folder is not None and not os.path.isdir(folder):
        raise UsageError(f"{folder} is not a folder here", hint="name one with --folder")
    path = environments_path()
    done = write_environment(path, name, folder=folder, make_default=make_default)
    emit(done, as_json, text=path)
    if not as_json and done["default"] != done["id"]:
        notice(f"codex uses {done['default']} unless it is told otherwise; change it: --default")


def _script(variables: dict[str, str], shell: str) -> str:
    import shlex

    if shell == "powershell":
        quoted = {key: "'" + value.replace("'", "''") + "'" for key, value in variables.items()}
        return "\n".join(f"$env:{key} = {value}" for key, value in quoted.items())
    word = "set -gx {} {};" if shell == "fish" else "export {}={}"
    return "\n".join(word.format(key, shlex.quote(value)) for key, value in variables.items())
