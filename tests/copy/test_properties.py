"""Whatever the tree, and wherever a copy breaks off how often: in the end it is the tree."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import ProtocolError
from codexctl.transfer.receiver import Receiver
from codexctl.transfer.sender import Sender
from codexctl.transfer.source import expand_sources, walk
from codexctl.transfer.target import Target
from codexctl.wire import files as wire
from tests.copy.test_transfer import copy, tree

NAMES = st.text(st.sampled_from("abé \n'"), min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
# Around what one frame, one announcement and a check hold.
SIZES = st.sampled_from([0, 1, 4096, 65535, 65536, 65537, 200_000])


def make(folder: Path, files: dict[str, int]) -> None:
    folder.mkdir()
    for name, size in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(bytes(at % 251 for at in range(0, size * 7, 7)))
        except (FileExistsError, NotADirectoryError):
            continue  # a file has the name that this one has a folder by


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(PATHS, SIZES, max_size=5),
    st.lists(st.integers(0, 400_000), max_size=3),
    st.booleans(),
)
def test_any_tree_arrives_through_any_breaks(
    files: dict[str, int], cuts: list[int], into: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "src", files)
        there = folder / "there"
        if into:
            there.mkdir()
        for cut in cuts:
            copy([str(folder / "src")], str(there), cut=cut)
            if not into and there.exists():
                break  # it was complete before the cut: copying again would go into it
        else:
            copy([str(folder / "src")], str(there))
        assert tree(there / "src" if into else there) == tree(folder / "src")


FRAMES = st.one_of(
    st.builds(
        lambda number, name, kind: wire.entry_frame(
            wire.Entry(number, (name,), kind, 0o644, 0, 3, "x")
        ),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
        st.sampled_from([wire.FILE, wire.DIRECTORY, wire.SYMLINK]),
    ),
    st.builds(
        lambda number, offset: wire.json_frame(wire.BEGIN, {"n": number, "offset": offset}),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.binary(max_size=4).map(lambda data: wire.frame(wire.DATA, data)),
    st.integers(0, 9).map(lambda size: wire.json_frame(wire.HOLE, {"size": size})),
    st.builds(
        lambda number, size: wire.json_frame(wire.END, {"n": number, "size": size, "sha256": ""}),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.integers(-1, 3).map(
        lambda number: wire.failure_frame(wire.FAILED, wire.Failure(number, "p", "m"))
    ),
    st.just(wire.frame(wire.FINISH, b"")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAMES, max_size=12))
def test_a_receiver_survives_any_order_of_frames(frames: list[bytes]) -> None:
    """It takes them or raises ProtocolError, and no file appears whose hash is wrong."""
    with tempfile.TemporaryDirectory() as name:
        receiver = Receiver(Target.open(f"{name}/", many=True))
        try:
            for data in frames:
                receiver.feed(data)
                while receiver.produce():
                    pass
        except ProtocolError:
            pass
        finally:
            receiver.close()
        found = [path for path in Path(name).iterdir() if path.is_file() and not path.is_symlink()]
        assert all(path.name.endswith(wire.PART_SUFFIX) for path in found)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda number, offset: wire.json_frame(
                wire.WANT, {"n": number, "offset": offset, "sha256": "0" * 64}
            ),
            st.integers(0, 2),
            st.integers(0, 5),
        ),
        max_size=6,
    )
)
def test_a_sender_survives_any_answers(answers: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        make(Path(name) / "src", {"a": 3, "b": 0})
        sender = Sender(walk(expand_sources([f"{name}/src"])))
        try:
            for answer in answers:
                sender.produce()
                sender.feed(answer)
            for _ in range(20):
                sender.produce()
        except ProtocolError:
            pass
        finally:
            sender.close()
