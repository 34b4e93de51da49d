"""Tools in environments of their own, asked what they made of an export."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
REPORTS = Path(__file__).parent / "reports"


def interpreter(tool: str, package: str) -> str:
    """Python that has a tool: named by the environment, made by the script, or this one."""
    variable = f"MPSEARCH_TEST_{tool.upper().replace('-', '_')}_PYTHON"
    named = os.environ.get(variable)
    if named:
        return named
    made = REPOSITORY / ".venv" / "export" / tool / "bin" / "python"
    if made.exists():
        return str(made)
    if importlib.util.find_spec(package) is not None:
        return sys.executable
    pytest.skip(f"no {tool}: run tests/export_environments.sh, or point {variable} to a Python")


def report(tool: str, package: str, script: str, *arguments: object) -> Any:
    """Run a script with the tool's Python and read the JSON on the last line that it prints."""
    python = interpreter(tool, package)
    ran = subprocess.run(
        [python, str(REPORTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])
