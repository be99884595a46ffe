"""`codexctl plugin` for real: a package is written, tested, built, installed, used and removed.

The environment is fresh: a venv with this codexctl as its own wheel; the dependencies are found in
the environment that runs the tests. Building takes setuptools from the package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from codexctl.provision.scaffold import package_files, write_package
from codexctl.provision.wheel import own_wheel
from tests.provision import machine

RUN_TIMEOUT_S = 100


class Fresh:
    """A fresh environment and a home, with codexctl's own command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = folder / "venv"
        venv.create(self.prefix, with_pip=False, symlinks=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(self.prefix)}))
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.python = self.prefix / "bin" / "python"
        name, data = own_wheel()
        (folder / name).write_bytes(data)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CODEXCTL_HOME": str(folder / "home"),
            "CODEXCTL_SSH_CONFIG": str(folder / "ssh_config"),
        }
        for variable in ("PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE", "https_proxy"):
            if variable in os.environ:
                self.env[variable] = os.environ[variable]
        done = self.call(
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--force-reinstall",
            str(folder / name),
        )
        assert done.returncode == 0, done.stderr

    def call(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *args],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.call("-m", "codexctl", *args)

    def ok(self, *args: str) -> str:
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, package: Path) -> subprocess.CompletedProcess[str]:
        done = self.run("plugin", "install", str(package), "--yes", "--json")
        if "setuptools" in done.stderr and "No matching distribution" in done.stderr:
            pytest.skip("the package index is not reached")
        return done

    def plugins(self) -> dict[str, str]:
        return {p["name"]: p["problem"] for p in json.loads(self.ok("plugin", "list", "--json"))}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    folder = tmp_path_factory.mktemp("fresh")
    yield Fresh(folder)
    machine.halt_all(folder)


def test_the_written_package_passes_its_tests_as_written(tmp_path: Path) -> None:
    write_package("cloud-nine", str(tmp_path / "package"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "package",
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_documented_example_is_the_package_that_is_written() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    for path, content in package_files("acme").items():
        if path != "README.md":
            assert content.strip() in text, f"docs/plugins.md shows another {path}"


def test_a_third_party_provider_from_install_to_removal(fresh: Fresh) -> None:
    package = Path(write_package("acme", str(fresh.folder / "acme")))
    done = fresh.install(package)
    assert done.returncode == 0, done.stderr
    assert f"{fresh.python} -m pip install" in done.stderr, "the exact command is shown"
    assert fresh.plugins()["acme"] == ""
    assert fresh.run("plugin", "check").returncode == 0
    assert "already" in fresh.install(package).stderr
    if machine.unavailable():
        pytest.skip(f"provisioning: {machine.unavailable()}")
    sys.path.insert(0, str(package / "tests"))
    try:
        from fake_acme import TOKEN, FakeAcme  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(package / "tests"))

    def boot(machine_id: str, user_data: str) -> int:
        return machine.boot(fresh.folder / machine_id, user_data)[0]

    def halt(machine_id: str) -> None:
        machine.halt_all(fresh.folder / machine_id)

    cloud = FakeAcme(boot, halt)
    try:
        fresh.env |= {"ACME_ENDPOINT": cloud.endpoint, "ACME_TOKEN": TOKEN}
        fresh.ok("provision", "acme", "--name", "box", "--bare", "--yes", "--json")
        said = subprocess.run(
            ["ssh", "-F", fresh.env["CODEXCTL_SSH_CONFIG"], "box", "echo hello"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert said.stdout == "hello\n", said.stderr
        refused = fresh.run("plugin", "remove", "acme", "--yes")
        assert refused.returncode == 1
        assert "while its workspaces live: box" in refused.stderr
        fresh.ok("workspace", "destroy", "box", "--yes")
        assert cloud.machines == {}
    finally:
        cloud.close()
    fresh.ok("plugin", "remove", "acme", "--yes")
    assert "acme" not in fresh.plugins()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("broken", ("USER_DATA_BYTES = 65536", "raise SystemExit('boom')"), "boom"),
        ("greedy", ('    name = "greedy"', '    name = "ssh"'), "taken already"),
    ],
)
def test_a_plugin_that_does_not_work_is_rolled_back(
    fresh: Fresh, name: str, change: tuple[str, str], reason: str
) -> None:
    package = Path(write_package(name, str(fresh.folder / name)))
    module = package / f"codexctl_{name}.py"
    assert change[0] in module.read_text()
    module.write_text(module.read_text().replace(*change))
    before = fresh.plugins()
    done = fresh.install(package)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "everything is as it was" in done.stderr
    assert fresh.plugins() == before
