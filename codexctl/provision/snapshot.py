"""A Python environment as it was: kept by hard links before an installer changes it, and put back.

Installers replace files and never write into one, so a link keeps the file of before at no cost.
What is kept is where packages and their commands go, and what the maker of the environment wrote
down about them; so whatever tool it was, afterwards everything is as it was, and offline.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from types import TracebackType

from codexctl.state.files import describe_os_error

FOLDER = ".codexctl-before"
RECORDS = ("pipx_metadata.json", "uv-receipt.toml")


class Snapshot:
    """Around an installation: `restore` puts back what was there at the beginning.

    StateError where the environment cannot be written; then nothing was changed.
    """

    def __init__(self, prefix: str = sys.prefix) -> None:
        self._kept = os.path.join(prefix, FOLDER)
        paths = [sysconfig.get_path(name) for name in ("purelib", "platlib", "scripts")]
        self._folders = list(dict.fromkeys(os.path.realpath(path) for path in paths))
        self._files = [os.path.join(prefix, name) for name in RECORDS]

    def __enter__(self) -> Snapshot:
        try:
            # Of an installation that was killed.
            shutil.rmtree(self._kept, ignore_errors=True)
            os.makedirs(self._kept, mode=0o700)
            for number, folder in enumerate(self._folders):
                place = self._place(number)
                shutil.copytree(folder, place, symlinks=True, copy_function=_link)
            for file in filter(os.path.exists, self._files):
                shutil.copy2(file, self._kept)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(self._kept, ignore_errors=True)
            if isinstance(error, shutil.Error):
                error = OSError(None, str(error.args[0][0][-1]))
            raise describe_os_error(error, self._kept, "make") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._kept, ignore_errors=True)

    def restore(self) -> None:
        """Everything as it was. StateError where that could not be done."""
        try:
            for number, folder in enumerate(self._folders):
                changed = os.path.join(self._kept, f"changed-{number}")
                os.rename(folder, changed)
                os.rename(self._place(number), folder)
            for file in self._files:
                kept = os.path.join(self._kept, os.path.basename(file))
                if os.path.exists(kept):
                    os.replace(kept, file)
        except OSError as error:
            raise describe_os_error(error, self._kept, "put back") from error

    def _place(self, number: int) -> str:
        return os.path.join(self._kept, f"folder-{number}")


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without links.
        shutil.copy2(source, target)
    return target
