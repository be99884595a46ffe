"""The table of commands, and what stands around every command: help, errors, exit status.

A command is a row of COMMANDS and a module of its own; nothing of it is imported for help. The top
help is written from the table alone, without click, whose import costs four bare Python starts.

What ends a command, and the status it gives:

- its own return value, an int, or None for 0
- CodexctlError: `codexctl: SENTENCE` and `hint: …` on stderr, the error's exit code; with `--json`
  the error's object as one line on stderr instead, since stdout is for results alone
- wrong usage 2; Ctrl-C 130; a closed stdout ends it by SIGPIPE as any filter; a full disk 1
- anything else is a defect: one sentence that names the place, without the exception's text (it
  could hold a secret), and CODEXCTL_DEBUG=1 for the whole traceback
"""

from __future__ import annotations

import errno
import io
import os
import sys

from codexctl import __version__
from codexctl.errors import CodexctlError, Interrupted, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.cli.lazy import LazyGroup

ENV_DEBUG = "CODEXCTL_DEBUG"
ENV_COMPLETE = "_CODEXCTL_COMPLETE"  # set by the scripts of cli/completion.py
OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("codexctl.cli.up:up", "Run a relay and a host here, and show how to pair"),
    "pair": ("codexctl.cli.pair:pair", "Pair with a host, or offer a pairing on this one"),
    "hosts": ("codexctl.cli.hosts:hosts", "List the hosts this device is paired with"),
    "exec": ("codexctl.cli.exec:exec_command", "Run a command on a host"),
    "shell": ("codexctl.cli.shell:shell", "Open a login shell on a host"),
    "cp": ("codexctl.cli.cp:cp", "Copy files to or from a host"),
    "forward": ("codexctl.cli.forward:forward", "Forward a local TCP port to a host's"),
    "ps": ("codexctl.cli.ps:ps", "List, reattach and signal processes of a host"),
    "env": ("codexctl.cli.env:env", "Point the official codex at a host"),
    "exec-server": (
        "codexctl.cli.exec_server:exec_server",
        "Let the official agent here work on a host",
    ),
    "attach": ("codexctl.cli.attach:attach", "The official terminal UI on the threads of a host"),
    "thread": ("codexctl.cli.thread:thread", "Threads of Codex on a host: start, watch, steer"),
    "inbox": ("codexctl.cli.inbox:inbox", "List what waits for a person, over all hosts"),
    "notify": ("codexctl.cli.notify:notify", "Be told when a thread needs you or has finished"),
    "devices": (
        "codexctl.cli.devices:devices",
        "List and revoke the devices that may use this host",
    ),
    "host": ("codexctl.cli.host:host", "Run this machine as a host; its service and policy"),
    "relay": ("codexctl.cli.relay:relay", "Run a relay; its tokens"),
    "audit": ("codexctl.cli.audit:audit", "List, verify and export this host's audit records"),
    "provision": ("codexctl.cli.provision:provision", "Make a workspace in one command"),
    "workspace": ("codexctl.cli.workspace:workspace", "List, stop, extend and destroy workspaces"),
    "provider": ("codexctl.cli.provider:provider", "Log in to a provider; regions, sizes, prices"),
    "plugin": ("codexctl.cli.plugin:plugin", "Install, list and make provider plugins"),
    "skill": ("codexctl.cli.skill:skill", "Teach the official codex to use codexctl"),
    "doctor": ("codexctl.cli.doctor:doctor", "Check every hop and say how to mend it"),
    "completion": ("codexctl.cli.completion:completion", "Completion for bash, zsh and fish"),
    "help": ("codexctl.cli.help:help_command", "Show the help of a command"),
}

HEADINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Start", ("up", "pair", "hosts")),
    ("Work on a host", ("exec", "shell", "cp", "forward", "ps")),
    ("Use the official codex", ("env", "exec-server", "attach")),
    ("Work with threads", ("thread", "inbox", "notify")),
    ("Own a host or a relay", ("devices", "host", "relay", "audit")),
    ("Make machines", ("provision", "workspace", "provider", "plugin")),
    ("Mend and learn", ("doctor", "skill", "completion", "help")),
)

SUMMARY = "Open, self-hosted control plane for coding agents on machines you own."
EPILOG = """\
First:  codexctl up                        on the machine where the code lives
then:   codexctl pair URL                  on this one, with the URL it printed
        codexctl exec HOST -- pytest -q

`codexctl COMMAND --help` explains a command. CODEXCTL_HOME names the folder that holds
all state of one identity (~/.codexctl)."""


def root_help() -> str:
    """The text of `codexctl --help`, from the table alone."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["Usage: codexctl COMMAND [ARGS]...", "", f"  {SUMMARY}"]
    for heading, names in HEADINGS:
        lines += ["", f"{heading}:"]
        lines += [f"  {name:<{width}}{COMMANDS[name][1]}" for name in names]
    lines += ["", "Options:", f"  {'--version':<{width}}Show the version"]
    lines += [f"  {'-h, --help':<{width}}Show this text", "", EPILOG, ""]
    return "\n".join(lines)


def root_group() -> LazyGroup:
    """The click group of all commands; it has loaded none of them."""
    from codexctl.cli.lazy import LazyGroup

    class Root(LazyGroup):
        def get_help(self, ctx: object) -> str:
            return root_help().rstrip("\n")

    return Root("codexctl", table=COMMANDS, help=SUMMARY)


def run(argv: list[str], *, ends_process: bool = False) -> int:
    """Run one command line and return its exit status; every error ends here.

    `ends_process`: the caller exits with it, so that after an error Ctrl-C changes nothing more.
    """
    _prepare_streams()
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except BaseException as error:
        if ends_process:
            import signal

            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _report(_innermost(error), as_json=_wants_json(argv))


def _prepare_streams() -> None:
    """Make a closed stdin, stdout or stderr /dev/null, so that no socket gets its number.

    What the terminal's encoding does not have is printed as an escape, and never an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - kept to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(argv: list[str]) -> int:
    if ENV_COMPLETE in os.environ:
        from codexctl.cli.completion import answer

        return answer(root_group(), os.environ[ENV_COMPLETE])
    if argv == ["--version"]:
        sys.stdout.write(f"codexctl {__version__}\n")
        return 0
    if argv in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(root_help())
        return 0
    _warn_of_expired_workspaces()
    if argv[:1] == ["exec"]:
        from codexctl.cli.exec_run import run_plain

        status = run_plain(argv)
        if status is not None:
            return status
    return _run_click(argv)


def _warn_of_expired_workspaces() -> None:
    from codexctl.paths import Home
    from codexctl.provision.expiry import expired_notice

    try:
        text = expired_notice(Home.from_env())
    except CodexctlError:
        # A home that cannot be used is what the command itself will speak about.
        return
    if text is not None:
        from codexctl.cli.output import notice

        notice(text)


def _run_click(argv: list[str]) -> int:
    import click

    try:
        group = root_group()
        with group.make_context("codexctl", argv) as context:
            result: object = group.invoke(context)
        return result if type(result) is int else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        raise _usage_error(error) from None
    except click.ClickException as error:
        raise CodexctlError(_sentence(error.format_message())) from error


def _usage_error(error: object) -> UsageError:
    """A click usage error in this program's form, with the help command of where it happened."""
    import click

    assert isinstance(error, click.UsageError)
    path = error.ctx.command_path if error.ctx is not None else "codexctl"
    hint = f"see: {path} --help"
    if path == "codexctl exec" and isinstance(error, click.NoSuchOption):
        # An option of the command that is to run, most likely.
        hint = "put the command behind --: codexctl exec HOST -- CMD"
    return UsageError(_sentence(error.format_message()), hint=hint)


def _sentence(text: str) -> str:
    """A library's message as one of ours: lower-case start, no final full stop."""
    text = " ".join(text.split()).removesuffix(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _wants_json(argv: list[str]) -> bool:
    own = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in own


def _innermost(error: BaseException) -> BaseException:
    """What a TaskGroup wrapped: an expected error first, as it explains the others."""
    while isinstance(error, BaseExceptionGroup):
        inner = error.exceptions
        expected = [e for e in inner if isinstance(e, (CodexctlError, KeyboardInterrupt))]
        error = expected[0] if expected else inner[0]
    return error


def _report(error: BaseException, *, as_json: bool) -> int:
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, BrokenPipeError):
        return _die_of_sigpipe()
    if os.environ.get(ENV_DEBUG):
        import traceback

        traceback.print_exception(error)
    expected = _expected(error)
    from codexctl.cli.output import print_error

    try:
        print_error(expected, as_json=as_json)
    except OSError:
        # Nobody reads stderr or it has no room: the status alone tells.
        pass
    return expected.exit_code


def _expected(error: BaseException) -> CodexctlError:
    if isinstance(error, CodexctlError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(error, OSError) and (error.filename or error.errno in OUTPUT_ERRORS):
        from codexctl.state.files import describe_os_error

        if not error.filename:
            # Only our own output has no name: drop what Python would try to flush again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return describe_os_error(error, str(error.filename or "standard output"), "use")
    return CodexctlError(
        f"unexpected {type(error).__name__}{_place(error)}",
        hint=f"this is a defect of codexctl; {ENV_DEBUG}=1 shows the traceback to report",
    )


def _place(error: BaseException) -> str:
    """` at FILE line N`, the last place in our own code, from the package's folder down."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    place, step = "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if file.startswith(package):
            place = f" at codexctl{file[len(package) :]} line {step.tb_lineno}"
        step = step.tb_next
    return place


def _die_of_sigpipe() -> int:
    """End as a filter whose reader went away ends: quietly, by SIGPIPE."""
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    return 128 + signal.SIGPIPE
