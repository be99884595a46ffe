"""What stands around a command: status, errors as text and as JSON, help, typos, closed outputs."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from codexctl import __version__
from codexctl.cli.main import COMMANDS, HEADINGS, root_help, run
from tests.cli.commands import SECRET

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> Run:
    """Run a command line in this process: status, stdout, stderr."""
    monkeypatch.setenv("CODEXCTL_HOME", os.fspath(tmp_path))
    monkeypatch.delenv("CODEXCTL_DEBUG", raising=False)
    monkeypatch.setitem(COMMANDS, "end", ("tests.cli.commands:end", "End somehow"))
    monkeypatch.setitem(COMMANDS, "nested", ("tests.cli.commands:nested", "Nest"))

    def call(*argv: str) -> tuple[int, str, str]:
        status = run(list(argv))
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.parametrize(
    ("argv", "status", "err"),
    [
        (["end", "ok"], 0, ""),
        (["end", "status", "42"], 42, ""),
        (["nested", "end", "status", "3"], 3, ""),
        (["end", "exit"], 7, ""),
        (
            ["end", "refused"],
            126,
            "codexctl: the host said no\\x1b[2J\nhint: run: codexctl host policy show\n",
        ),
        (["end", "grouped"], 126, "codexctl: no, said a task\n"),
        (["end", "interrupt"], 130, "codexctl: interrupted\n"),
        (["end", "abort"], 130, "codexctl: interrupted\n"),
        (["end", "click"], 1, "codexctl: something That Click says\n"),
        (
            ["end", "disk"],
            1,
            "codexctl: cannot use /somewhere/device.db: No space left on device\n"
            "hint: free some space on that disk, then run the same command again\n",
        ),
        (["end"], 2, "codexctl: missing argument 'HOW'\nhint: see: codexctl end --help\n"),
        (["emd"], 2, "codexctl: no command 'emd' in codexctl; did you mean end?\n"),
        (["qqqq"], 2, "codexctl: no command 'qqqq' in codexctl\nhint: see: codexctl --help\n"),
        (["--nope"], 2, "codexctl: no such option '--nope'"),
        (["nested", "edn"], 2, "codexctl: no command 'edn' in codexctl nested; did you mean end?"),
        (["nested", "end", "--hwo"], 2, "hint: see: codexctl nested end --help\n"),
        (["help", "emd"], 2, "did you mean end?"),
        (["exec", "box", "ls", "-la"], 2, "put the command behind --"),
        (["help", "end", "x"], 2, "codexctl end has no commands of its own"),
    ],
)
def test_every_end_has_its_status_and_its_words(
    cli: Run, argv: list[str], status: int, err: str
) -> None:
    seen = cli(*argv)
    assert seen[0] == status
    assert err in seen[2]
    assert "Traceback" not in seen[2]


def test_a_defect_names_its_place_and_no_content(cli: Run) -> None:
    status, out, err = cli("end", "defect")
    assert (status, out) == (1, "")
    assert err.startswith("codexctl: unexpected LookupError at codexctl/cli/main.py line ")
    assert "CODEXCTL_DEBUG=1" in err
    assert SECRET not in err


def test_debugging_shows_the_traceback(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEXCTL_DEBUG", "1")
    _, _, err = cli("end", "defect")
    assert err.startswith("Traceback")
    assert SECRET in err


def test_with_json_an_error_is_one_json_line_on_stderr(cli: Run) -> None:
    status, out, err = cli("end", "refused", "--json")
    assert (status, out) == (126, "")
    assert json.loads(err) == {
        "error": "refused",
        "message": "the host said no\x1b[2J",
        "hint": "run: codexctl host policy show",
        "exit_code": 126,
    }
    assert json.loads(cli("emd", "--json")[2])["exit_code"] == 2
    # Behind -- it belongs to the command that is run.
    assert cli("end", "refused", "--", "--json")[2].startswith("codexctl: ")


def test_a_question_without_a_terminal_is_a_usage_error(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        status, out, err = cli("end", "confirm")
    assert (status, out) == (2, "")
    assert "stdin is not a terminal\nhint: add --yes" in err
    assert cli("end", "confirm", "--yes", "--json")[1] == '{\n  "agreed": true\n}\n'


def test_a_workspace_past_its_ttl_is_the_first_line_of_every_command(
    cli: Run, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "provision.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE workspaces (name, ended_at, expires_at)")
        db.execute("INSERT INTO workspaces VALUES ('api', NULL, 1)")
    for argv, status in ((["end", "ok"], 0), (["emd"], 2), (["nested", "end", "refused"], 126)):
        seen = cli(*argv)
        assert seen[0] == status
        assert seen[2].startswith("codexctl: workspace api is past the ttl")
    assert cli("--help")[2] == ""


def test_help_is_the_table_in_headings(cli: Run) -> None:
    own = [name for name in COMMANDS if name not in ("end", "nested")]
    assert sorted(name for _, names in HEADINGS for name in names) == sorted(own)
    assert cli("--help") == cli("-h") == cli("help") == (0, root_help(), "")
    status, out, err = cli()
    assert (status, out, err) == (2, "", root_help())
    assert max(map(len, root_help().splitlines())) <= 88
    assert cli("help", "nested", "end") == cli("nested", "end", "--help")
    assert "End somehow" in cli("nested", "--help")[1]


def test_a_group_without_a_command_shows_its_help_as_wrong_usage(cli: Run) -> None:
    status, out, err = cli("nested")
    assert (status, out) == (2, "")
    assert err.startswith("Usage: codexctl nested")


# Real processes from here on.

CODEXCTL = [sys.executable, "-m", "codexctl"]


def test_version_and_an_unknown_command_as_processes(tmp_path: os.PathLike[str]) -> None:
    done = subprocess.run([*CODEXCTL, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"codexctl {__version__}\n", "")
    done = subprocess.run([*CODEXCTL, "pear"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean pair?" in done.stderr


def test_a_full_disk_behind_stdout_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*CODEXCTL, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "codexctl: cannot use standard output: No space left on device\n"
        "hint: free some space on that disk, then run the same command again\n"
    )


def test_a_closed_stdout_ends_it_quietly_by_sigpipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*CODEXCTL, "--help"], stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert done.returncode == -signal.SIGPIPE
    assert done.stderr == b""


def test_an_encoding_that_lacks_a_character_is_no_error() -> None:
    done = subprocess.run(
        [*CODEXCTL, "exec", "--help"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0, done.stderr
    assert b"HOST[,HOST\\u2026]" in done.stdout


@pytest.mark.parametrize(
    ("redirection", "status"),
    [(">&-", 0), ("<&- >&- 2>&-", 0), ("2>&-", 0), ("2>/dev/full", 0)],
)
def test_closed_streams_do_no_harm(redirection: str, status: int) -> None:
    shell = f'"$0" -m codexctl --help {redirection}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert done.returncode == status
    assert done.stderr == b""
    shell = f'"$0" -m codexctl pear {redirection}'
    done = subprocess.run(["sh", "-c", shell, sys.executable], stderr=subprocess.DEVNULL)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("how", "prompt", "typed", "status", "shown"),
    [
        ("confirm", b"Destroy it? [y/N]", b"\x03", 130, b"before an answer, nothing was changed"),
        ("confirm", b"Destroy it? [y/N]", b"\x04", 130, b"before an answer, nothing was changed"),
        ("confirm", b"Destroy it? [y/N]", b"what\nY\n", 0, b'"agreed": true'),
        ("confirm", b"Destroy it? [y/N]", b"\n", 0, b'"agreed": false'),
        ("secret", b"Passphrase:", b"\x03", 130, b"before an answer, nothing was changed"),
        ("secret", b"Passphrase:", b"\x04", 130, b"before an answer, nothing was changed"),
        ("secret", b"Passphrase:", b"hush\n", 0, b'"length": 4'),
    ],
)
def test_answers_at_a_prompt_on_a_terminal(
    how: str, prompt: bytes, typed: bytes, status: int, shown: bytes
) -> None:
    code = (
        "from codexctl.cli.main import COMMANDS, run; import sys;"
        "COMMANDS['end'] = ('tests.cli.commands:end', '');"
        f"sys.exit(run(['end', {how!r}, '--json']))"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""
    while prompt not in seen:
        seen += os.read(terminal, 4096)
    os.write(terminal, typed)
    try:
        while block := os.read(terminal, 4096):
            seen += block
    except OSError:
        # Linux ends a terminal whose other side is gone with EIO.
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    assert shown in seen
    assert b"hush" not in seen
