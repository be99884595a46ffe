"""codexctl as people have it: the built wheel in a fresh environment, bytecode compiled.

An editable install adds an import hook to every start of Python, which would be measured with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def installed(extras: str = "") -> Iterator[Path]:
    """The `bin` folder of an environment that holds the product, with `extras` as `[clouds]`."""
    folder = Path(tempfile.mkdtemp(prefix="codexctl-bench-"))
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        python = folder / "bin" / "python"
        uv = shutil.which("uv") or shutil.which("uv", path=os.path.dirname(sys.executable))
        if uv:
            command = [uv, "pip", "install", "--quiet", "--python", str(python)]
        else:
            command = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*command, f"{ROOT}{extras}"], check=True)
        packages = str(folder / "lib")
        subprocess.run([str(python), "-m", "compileall", "-q", packages], check=False)
        yield folder / "bin"
    finally:
        shutil.rmtree(folder)
