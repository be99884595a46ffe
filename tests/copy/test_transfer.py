"""Sender and receiver joined in memory: trees, resuming, hostile senders."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import CodexctlError, ProtocolError
from codexctl.transfer.receiver import Receiver
from codexctl.transfer.sender import Sender
from codexctl.transfer.source import Found, expand_sources, source_name, walk
from codexctl.transfer.summary import Summary
from codexctl.transfer.target import Target, part_name
from codexctl.wire import files as wire


def join(sender: Sender, receiver: Receiver, *, cut: int | None = None) -> None:
    """Carry bytes both ways until the copy is complete, or `cut` bytes have gone one way."""
    moved = 0
    idle = 0
    while not sender.finished:
        idle += 1
        assert idle < 3, "both sides wait"
        for one, other in ((sender, receiver), (receiver, sender)):
            data = one.produce()
            if data is not None:
                idle = 0
            if data:
                if one is sender:
                    if cut is not None and moved + len(data) > cut:
                        other.feed(data[: cut - moved])
                        return
                    moved += len(data)
                # In odd pieces, as a network does.
                for at in range(0, len(data), 10007):
                    other.feed(data[at : at + 10007])


def copy(paths: list[str], target: str, *, cut: int | None = None) -> Summary:
    roots = expand_sources(paths)
    sender = Sender(walk(roots))
    receiver = Receiver(Target.open(target, many=len(roots) > 1))
    try:
        join(sender, receiver, cut=cut)
        if cut is None:
            assert sender.summary.counts() == receiver.summary.counts()
            assert sender.summary.failures == receiver.summary.failures
        return receiver.summary
    finally:
        sender.close()
        receiver.close()


def tree(folder: Path) -> dict[str, tuple[str, int, int, bytes]]:
    """Everything below: type, mode, time and content or target."""
    out = {}
    for root, folders, names in os.walk(os.fsencode(folder)):
        for name in folders + names:
            path = os.path.join(root, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                kind, content = "link", os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                kind, content = "folder", b""
            else:
                with open(path, "rb") as file:
                    kind, content = "file", hashlib.sha256(file.read()).digest()
            shown = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            out[shown] = (kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
    return out


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "a.txt").write_text("hello\n")
    (folder / "nothing").write_bytes(b"")
    (folder / "sub" / "big").write_bytes(os.urandom(300_000))
    (folder / "sub" / "deep" / "run").write_text("#!/bin/sh\n")
    (folder / "sub" / "deep" / "run").chmod(0o755)
    (folder / "link").symlink_to("sub/big")
    (folder / "dangling").symlink_to("/nowhere/at/all")
    (folder / "é ü\n").write_text("odd")
    with open(os.fsencode(folder) + b"/\xff\xfe", "wb") as file:
        file.write(b"not UTF-8")
    os.utime(folder / "a.txt", ns=(10**18, 10**18 + 1))
    (folder / "sub").chmod(0o555)
    os.utime(folder / "sub", ns=(10**18, 10**18 + 7))
    return folder


def test_a_tree_arrives_as_it_was(source: Path, tmp_path: Path) -> None:
    summary = copy([str(source)], str(tmp_path / "copy"))
    assert tree(tmp_path / "copy") == tree(source)
    assert (summary.files, summary.directories, summary.symlinks) == (6, 4, 2)
    assert summary.bytes == sum(
        path.stat().st_size
        for path in source.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    assert summary.failures == summary.resumed_bytes == 0


def test_an_existing_folder_is_copied_into(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    copy([str(source)], str(tmp_path / "there"))
    assert tree(tmp_path / "there" / "src") == tree(source)


def test_contents_without_the_name(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    copy([f"{source}/."], str(tmp_path / "there"))
    assert tree(tmp_path / "there") == tree(source)
    copy([f"{source}/."], str(tmp_path / "new"))
    assert tree(tmp_path / "new") == tree(source)


def test_several_sources_and_patterns(source: Path, tmp_path: Path) -> None:
    summary = copy([f"{source}/a*", f"{source}/sub"], f"{tmp_path}/new")
    assert summary.files == 3
    assert sorted(os.listdir(tmp_path / "new")) == ["a.txt", "sub"]


def test_a_file_gets_the_new_name_and_replaces_what_was_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.txt"
    target.write_text("old")
    target.chmod(0o400)
    copy([f"{source}/a.txt"], str(target))
    assert target.read_text() == "hello\n"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((source / "a.txt").stat().st_mode)
    assert not list(tmp_path.glob("*" + wire.PART_SUFFIX))


def test_a_link_on_the_command_line_is_followed(source: Path, tmp_path: Path) -> None:
    copy([f"{source}/link"], f"{tmp_path}/")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == (source / "sub" / "big").read_bytes()


@pytest.mark.parametrize(
    ("target", "message"),
    [("missing/x", "there is no directory"), ("file/", "is no directory"), ("file/x", "cannot")],
)
def test_targets_that_are_no_place(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodexctlError, match=message):
        Target.open(f"{tmp_path}/{target}", many=False)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CodexctlError, match="does not exist"):
        expand_sources([f"{tmp_path}/no*"])


@pytest.mark.parametrize("cut", [400, 70_000, 150_000, 290_000])
def test_a_broken_copy_goes_on(source: Path, tmp_path: Path, cut: int) -> None:
    copy([str(source)], str(tmp_path / "copy"), cut=cut)
    assert not (tmp_path / "copy").exists()
    summary = copy([str(source)], str(tmp_path / "copy"))
    assert tree(tmp_path / "copy") == tree(source)
    # What was complete, or reached the partial file, did not travel again.
    assert summary.resumed_bytes >= cut - 66_000
    assert summary.failures == 0


def test_a_second_copy_sends_nothing(source: Path, tmp_path: Path) -> None:
    copy([str(source)], str(tmp_path / "copy"))
    summary = copy([f"{source}/."], str(tmp_path / "copy"))
    assert summary.resumed_bytes == summary.bytes
    assert tree(tmp_path / "copy") == tree(source)


def test_a_partial_copy_of_something_else_is_not_continued(source: Path, tmp_path: Path) -> None:
    (tmp_path / "big.codexctl-part").write_bytes(b"x" * 1000)
    summary = copy([f"{source}/sub/big"], f"{tmp_path}/")
    assert (tmp_path / "big").read_bytes() == (source / "sub" / "big").read_bytes()
    assert summary.resumed_bytes == 0


def test_equal_size_and_time_with_another_content_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("one")
    (tmp_path / "f").write_text("two")
    for path in (tmp_path / "a" / "f", tmp_path / "f"):
        os.utime(path, ns=(10**18, 10**18))
    copy([f"{tmp_path}/a/f"], f"{tmp_path}/")
    assert (tmp_path / "f").read_text() == "one"


def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(50 << 20)
        file.write(b"middle")
        file.truncate(90 << 20)
    sender = Sender(walk(expand_sources([f"{tmp_path}/sparse"])))
    receiver = Receiver(Target.open(f"{tmp_path}/copy", many=False))
    join(sender, receiver)
    copied = tmp_path / "copy"
    assert copied.stat().st_size == 90 << 20
    assert copied.stat().st_blocks * 512 < 5 << 20
    with copied.open("rb") as file:
        assert file.read(5) == b"start"
        file.seek(50 << 20)
        assert file.read() == b"middle" + bytes((40 << 20) - 6)


def test_special_files_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    os.mkfifo(tmp_path / "src" / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path / "src")
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    (tmp_path / "src" / "old.codexctl-part").write_text("")
    (tmp_path / "src" / "kept").write_text("x")
    summary = copy([f"{tmp_path}/src"], f"{tmp_path}/copy")
    assert os.listdir(tmp_path / "copy") == ["kept"]
    assert [entry["message"].split(",")[0] for entry in summary.skipped] == [
        "a FIFO",
        "a partial copy",
        "a socket",
    ]
    assert summary.failures == 0


def test_what_cannot_be_replaced_fails_alone(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "copy"
    (there / "a.txt").mkdir(parents=True)  # a folder where a file should be
    (there / "sub").symlink_to(tmp_path / "elsewhere")  # a link where a folder should be
    (tmp_path / "elsewhere").mkdir()
    summary = copy([f"{source}/."], str(there))
    assert {entry["path"] for entry in summary.failed} == {
        "./a.txt", "./sub", "./sub/big", "./sub/deep", "./sub/deep/run",
    }  # fmt: skip
    assert os.listdir(tmp_path / "elsewhere") == []
    assert (there / "é ü\n").exists()


def test_a_partial_name_that_is_a_link_is_not_written_through(source: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    there = tmp_path / "there"
    there.mkdir()
    (there / "a.txt.codexctl-part").symlink_to(victim)
    assert copy([f"{source}/a.txt"], f"{there}/").failures == 1
    (there / "a.txt.codexctl-part").unlink()
    os.link(victim, there / "a.txt.codexctl-part")
    assert copy([f"{source}/a.txt"], f"{there}/").failures == 1
    assert victim.read_text() == "precious"


def test_a_long_name_has_a_short_partial_one(tmp_path: Path) -> None:
    name = "n" * 250
    (tmp_path / name).write_bytes(b"x" * 1000)
    assert len(part_name(name)) < 255
    copy([f"{tmp_path}/{name}"], f"{tmp_path}/there/")
    assert (tmp_path / "there" / name).stat().st_size == 1000


def test_two_copies_to_one_name_do_not_mix(source: Path, tmp_path: Path) -> None:
    first = Sender(walk(expand_sources([f"{source}/sub/big"])))
    writing = Receiver(Target.open(f"{tmp_path}/", many=False))
    join(first, writing, cut=100_000)
    assert copy([f"{source}/sub/big"], f"{tmp_path}/").failed[0]["message"].startswith("another")
    first.close()
    writing.close()


def test_many_files_keep_the_window_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1200):
        (folder / f"{number}").write_text(f"{number}")
    summary = copy([str(folder)], f"{tmp_path}/copy")
    assert summary.files == 1200
    assert tree(tmp_path / "copy") == tree(folder)


# --- hostile senders ---


def entry(number: int, *parts: str, kind: str = wire.FILE, target: str = "") -> bytes:
    return wire.entry_frame(wire.Entry(number, parts, kind, 0o644, 0, 4, target))


def content(number: int, data: bytes = b"evil") -> bytes:
    end = {"n": number, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return (
        wire.json_frame(wire.BEGIN, {"n": number, "offset": 0})
        + wire.frame(wire.DATA, data)
        + wire.json_frame(wire.END, end)
    )


@pytest.mark.parametrize(
    "parts",
    [
        ("..", "x"), ("a", "..", "x"), ("/etc", "x"), ("a/b",), ("",), ("a", "."), ("a", ""),
        ("x\0y",), ("n" * 256,), ("a", ".."), ("x.codexctl-part",), ("\ud800",), (".", ".."),
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere_end_the_copy(tmp_path: Path, parts: tuple[str, ...]) -> None:
    receiver = Receiver(Target.open(f"{tmp_path}/", many=True))
    with pytest.raises(ProtocolError):
        receiver.feed(entry(0, *parts))
    receiver.close()
    assert os.listdir(tmp_path) == []


def test_a_link_and_then_a_file_through_it(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "there").mkdir()
    receiver = Receiver(Target.open(f"{tmp_path}/there", many=True))
    receiver.feed(entry(0, "d", kind=wire.SYMLINK, target=f"{tmp_path}/outside"))
    receiver.feed(entry(1, "d", "x"))
    receiver.feed(entry(2, "d", kind=wire.DIRECTORY))
    receiver.feed(entry(3, "d", kind=wire.FILE))
    with pytest.raises(ProtocolError):
        receiver.feed(content(1))
    receiver.close()
    assert os.listdir(tmp_path / "outside") == []
    assert receiver.summary.failures == 2


def test_a_file_of_the_name_of_a_link_replaces_the_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "there").mkdir()
    receiver = Receiver(Target.open(f"{tmp_path}/there", many=True))
    receiver.feed(entry(0, "d", kind=wire.SYMLINK, target=str(victim)))
    receiver.feed(entry(1, "d"))
    receiver.feed(content(1))
    receiver.close()
    assert victim.read_text() == "precious"
    assert (tmp_path / "there" / "d").read_text() == "evil"


def test_a_folder_that_becomes_a_link_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    there = tmp_path / "there"
    there.mkdir()
    receiver = Receiver(Target.open(str(there), many=True))
    receiver.feed(entry(0, "d", kind=wire.DIRECTORY) + entry(1, "d", "x") + entry(2, "e"))
    receiver.feed(content(2))  # the receiver is elsewhere now and has to enter d again
    (there / "d").rmdir()
    (there / "d").symlink_to(tmp_path / "outside")
    receiver.feed(content(1) + wire.frame(wire.FINISH, b""))
    receiver.produce()
    receiver.produce()
    receiver.close()
    assert os.listdir(tmp_path / "outside") == []
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) != 0o644
    assert receiver.finished


def test_names_that_were_not_asked_for_end_the_copy(tmp_path: Path) -> None:
    receiver = Receiver(Target.open(f"{tmp_path}/", many=True), ["results", "*.log"])
    receiver.feed(entry(0, "a.log"))
    with pytest.raises(ProtocolError, match="not asked for"):
        receiver.feed(entry(1, ".bashrc"))
    receiver.close()


def test_a_wrong_hash_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    receiver = Receiver(Target.open(f"{tmp_path}/", many=True))
    receiver.feed(entry(0, "a"))
    receiver.feed(content(0).replace(b"evil", b"live"))
    receiver.close()
    assert not (tmp_path / "a").exists()
    assert "SHA-256" in receiver.summary.failed[0]["message"]


@pytest.mark.parametrize(
    "frames",
    [
        wire.frame(wire.DATA, b"x"),
        content(0),
        entry(1, "a"),
        entry(0, "a") + wire.frame(wire.FINISH, b""),
        entry(0, "a") + content(0) + content(0),
        entry(0, "a") + wire.json_frame(wire.BEGIN, {"n": 0, "offset": 3}),
        wire.frame(wire.FINISH, b"") + entry(0, "a"),
        wire.json_frame(wire.WANT, {"n": 0, "offset": 0, "sha256": ""}),
        b"\x00\x00\x00\x00\x00",
        b"\x04\xff\xff\xff\xff",
        wire.frame(wire.ENTRY, b"[]"),
        wire.frame(wire.ENTRY, b"{"),
        b"".join(entry(n, f"{n}") for n in range(wire.WINDOW + 1)),
    ],
)
def test_nonsense_ends_the_copy(tmp_path: Path, frames: bytes) -> None:
    receiver = Receiver(Target.open(f"{tmp_path}/", many=True))
    with pytest.raises(ProtocolError):
        receiver.feed(frames)
    receiver.close()


def test_a_receiver_that_has_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("abc")
    sender = Sender(walk(expand_sources([f"{tmp_path}/f"])))
    sender.produce()
    with pytest.raises(ProtocolError):
        sender.feed(wire.json_frame(wire.WANT, {"n": 0, "offset": 4, "sha256": "00"}))


def test_the_other_sides_error_is_raised_here(tmp_path: Path) -> None:
    receiver = Receiver(Target.open(f"{tmp_path}/", many=True))
    with pytest.raises(CodexctlError, match="no such thing") as caught:
        receiver.feed(wire.error_frame(CodexctlError("no such thing", hint="look again")))
    assert caught.value.hint == "look again"
    receiver.close()


def test_a_file_that_cannot_be_read_is_named_and_the_rest_arrives(tmp_path: Path) -> None:
    def found() -> Iterator[Found]:
        yield Found("/nowhere/x", ("x",), wire.FILE, 0o644, 0, 5, "")
        yield Found(str(tmp_path / "y"), ("y",), wire.FILE, 0o644, 0, 1, "")

    (tmp_path / "y").write_text("y")
    sender, receiver = Sender(found()), Receiver(Target.open(f"{tmp_path}/there/", many=True))
    join(sender, receiver)
    assert receiver.summary.failed[0]["path"] == "/nowhere/x"
    assert (tmp_path / "there" / "y").exists()


NAMES = st.text(st.sampled_from("ab./\0\udcff\ud800é"), max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.lists(NAMES, max_size=5))
def test_accepted_paths_stay_below(parts: list[str]) -> None:
    try:
        accepted = wire.check_parts(list(parts))
    except ProtocolError:
        return
    path = os.path.normpath(os.path.join("/base", *accepted))
    assert path == "/base" or path.startswith("/base/")
    os.fsencode(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    reader = wire.FrameReader()
    decoders = {
        wire.ENTRY: wire.decode_entry,
        wire.WANT: wire.decode_want,
        wire.END: wire.decode_end,
    }
    try:
        for kind, found in reader.feed(data):
            decoders.get(kind, lambda content: content)(found)
    except ProtocolError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=6), st.integers(1, 9))
def test_frames_survive_any_cutting(contents: list[bytes], step: int) -> None:
    data = b"".join(wire.frame(wire.DATA, content) for content in contents)
    reader = wire.FrameReader()
    found = []
    for at in range(0, len(data), step):
        found += [content for _, content in reader.feed(data[at : at + step])]
    assert found == contents


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b", "b"),
        ("a/b/", "b"),
        ("a/.", "."),
        ("..", "."),
        ("/", "."),
        ("b", "b"),
        ("../", "."),
        ("./", "."),
    ],
)
def test_names_of_sources(path: str, name: str) -> None:
    assert source_name(path) == name
