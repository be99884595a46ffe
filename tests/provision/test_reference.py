"""The reference provider against the conformance suite that ships."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from codexctl.provision.conformance import ProviderConformance
from codexctl.provision.model import Provider
from tests.provision.reference import TOKEN, ReferenceProvider

OF_CREATE = {"read-only", "quota", "payment", "no-capacity", "lost-answer"}


class TestReference(ProviderConformance):
    @pytest.fixture(autouse=True)
    def _cloud(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path
        monkeypatch.setenv("REFERENCE_CLOUD", str(tmp_path))

    def provider(self) -> Provider:
        return ReferenceProvider()

    def secret_texts(self) -> list[str]:
        return [TOKEN]

    @contextmanager
    def provoke(self, fault: str) -> Iterator[None]:  # type: ignore[override]
        faults: dict[str, Any] = {"*": fault}
        if fault in OF_CREATE:
            faults = {"create": fault}
        elif fault == "list-page":
            faults = {"list": "page"}
        file = self.folder / "faults.json"
        file.write_text(json.dumps(faults))
        yield
        file.unlink()
