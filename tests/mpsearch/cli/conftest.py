"""Run the command line in this process, as a user would call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mpsearch.cli import main


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """Standard error as one line, without the frame of the error panel."""
        return " ".join(self.err.replace("│", " ").split())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call
