"""`codexctl completion`: shell completion of commands, options and host names.

The engine and the shells' scripts are click's. A shell calls codexctl with _CODEXCTL_COMPLETE set,
`answer` replies. What an argument completes to is in cli/complete.py.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class
from click.shell_completion import shell_complete as click_answer

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.main import ENV_COMPLETE, root_group
from codexctl.cli.output import confirm, notice, yes_option
from codexctl.errors import CodexctlError, UsageError

SHELLS = ("bash", "zsh", "fish")
BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"
RC_MARK = "# codexctl completion"
_BASH_ADD = "COMPREPLY+=($value)"
_BASH_NO_SPACE = "            [[ $value == *: ]] && compopt -o nospace 2>/dev/null"


def answer(group: click.Group, instruction: str) -> int:
    """What the shell asked through ENV_COMPLETE; silent on failure, as a person is typing."""
    try:
        return click_answer(group, {}, "codexctl", ENV_COMPLETE, instruction)
    except Exception:
        if os.environ.get("CODEXCTL_DEBUG"):
            raise
        return 1


def script(shell: str) -> str:
    """The text that a shell loads."""
    kind = get_completion_class(shell)
    assert kind is not None
    text = kind(root_group(), {}, "codexctl", ENV_COMPLETE).source()
    # bash would put a space behind `HOST:`, where the path of cp goes.
    return text.replace(_BASH_ADD, f"{_BASH_ADD}\n{_BASH_NO_SPACE}") if shell == "bash" else text


@click.group(cls=LazyGroup)
def completion() -> None:
    """Completion of commands, options and host names for bash, zsh and fish.

    For this shell only:  eval "$(codexctl completion bash)"
    For every new shell:  codexctl completion install
    """


def _print_command(shell: str) -> click.Command:
    @click.command(shell, help=f"Print the script for {shell}.")
    def command() -> None:
        click.echo(script(shell), nl=False)

    return command


for _shell in SHELLS:
    completion.add_command(_print_command(_shell))


@completion.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@yes_option
def install(shell: str | None, yes: bool) -> None:
    """Install it for every new SHELL (without it: the login shell).

    bash (with the bash-completion package) and fish look for a file in your home by themselves;
    elsewhere one line is added to ~/.bashrc or ~/.zshrc, after asking.
    """
    from codexctl.state.files import replace_file

    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        raise UsageError(
            f"no completion for the shell {shell or '(unknown)'}",
            hint="name one: codexctl completion install bash|zsh|fish",
        )
    path, rc, line = _places(shell)
    if rc and not _has_line(rc) and not confirm(f"Add one line to {rc}?", yes=yes):
        raise UsageError("nothing was installed", hint=f"put it there yourself: {line}")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        replace_file(path, script(shell).encode(), mode=0o644)
        if rc and not _has_line(rc):
            with open(rc, "a", encoding="utf-8") as file:
                file.write(f"\n{RC_MARK}\n{line}\n")
    except OSError as error:
        raise CodexctlError(f"cannot write {error.filename}: {error.strerror}") from error
    notice(f"installed {path}; it is there in every new {shell}")


def _places(shell: str) -> tuple[str, str | None, str]:
    """The script's file; the rc file that must load it, None where the shell does; the line."""
    home = os.path.expanduser("~")
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    if shell == "fish":
        return os.path.join(config, "fish", "completions", "codexctl.fish"), None, ""
    if shell == "bash" and os.path.exists(BASH_COMPLETION):
        return os.path.join(data, "bash-completion", "completions", "codexctl"), None, ""
    path = os.path.join(data, "codexctl", f"completion.{shell}")
    if shell == "bash":
        return path, os.path.join(home, ".bashrc"), f". '{path}'"
    rc = os.path.join(os.environ.get("ZDOTDIR") or home, ".zshrc")
    return path, rc, f"autoload -Uz compinit && compinit && . '{path}'"


def _has_line(rc: str) -> bool:
    try:
        with open(rc, encoding="utf-8", errors="replace") as file:
            return RC_MARK in file.read()
    except FileNotFoundError:
        return False
