"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch loads: tests often share their cores with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public instances and tables, beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with the public instances")
    return folder
