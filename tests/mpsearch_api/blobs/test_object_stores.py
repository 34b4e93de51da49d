"""The tests of blob stores once more, where clients and servers of S3 and GCS are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PYTHON = Path(
    os.environ.get(
        "MPSEARCH_TEST_OBJECT_STORES_PYTHON", ROOT / ".venv/export/object-stores/bin/python"
    )
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [["test_blobs.py", "-k", "s3 or gs"], ["test_object_store_errors.py"]],
    ids=["promises", "errors"],
)
def test_blob_stores_keep_their_promises_on_object_stores(given: list[str]) -> None:
    if importlib.util.find_spec("s3fs") is not None:
        pytest.skip("this environment has them: the tests run in it directly")
    if not PYTHON.exists():
        pytest.skip(f"no {PYTHON}: run tests/export_environments.sh")
    command = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(HERE / given[0]), *given[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
