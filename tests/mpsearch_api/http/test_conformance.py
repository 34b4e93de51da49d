"""The whole API against its own OpenAPI document, by schemathesis.

In short here; MPSEARCH_TEST_SCHEMATHESIS=long runs all phases with thousands of cases.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from mpsearch_api.blobs import open_blobs
from mpsearch_api.execution.folders import RunFolder
from mpsearch_api.http import create_app
from mpsearch_api.http.catalogue import Catalogue, Description
from mpsearch_api.settings import Settings
from mpsearch_api.store import open_store

pytest.importorskip("schemathesis")

LONG = os.environ.get("MPSEARCH_TEST_SCHEMATHESIS") == "long"
CONFIG = """
request-timeout = 30.0

# A schema cannot say which names exist, nor which of a tenant's objects there are: what fits it may
# still be refused with a reason. Never with a 5xx, and never undocumented.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "400", "401", "403", "404", "409", "413", "422", "429"]

# What breaks the schema may be refused for its size before it is read.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "415", "422", "429"]

# Waiting for a job that nobody runs would only take time.
[[operations]]
include-operation-id = "getJob"
parameters = { "query.wait" = 0.01 }
"""


@pytest.fixture
def served(tmp_path: Path, description: Description) -> Iterator[tuple[str, str]]:
    """A real server with a key, beside a dispatcher that says that it is ready."""
    settings = Settings(
        data_dir=tmp_path / "data",
        open_mode=False,
        requests_per_minute=10**9,
        open_jobs=10**9,
        log_level="error",
    )
    store, blobs = open_store(settings), open_blobs(settings)
    _, token = store.keys.create("schemathesis", ["write", "trusted"])
    dispatcher = RunFolder(settings.data_dir, "test")
    over = threading.Event()

    def beat() -> None:
        while not over.wait(1.0):
            dispatcher.tell(None, 0)

    dispatcher.tell(None, 0)
    app = create_app(settings, store=store, blobs=blobs, catalogue=Catalogue(description))
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    threads = [threading.Thread(target=server.run), threading.Thread(target=beat)]
    for thread in threads:
        thread.start()
    while not server.started:
        assert threads[0].is_alive()
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", token
    server.should_exit = True
    over.set()
    for thread in threads:
        thread.join(60)
    dispatcher.close()
    store.close()


@pytest.mark.slow
def test_no_case_fails_the_service_or_gets_an_undocumented_answer(
    served: tuple[str, str], tmp_path: Path
) -> None:
    base, token = served
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    command = [sys.executable, "-c", program, "--config-file", str(config), "run"]
    command += [f"{base}/openapi.json", "-H", f"Authorization: Bearer {token}"]
    command += ["--checks", "all", "--continue-on-failure", "--no-color", "--warnings", "off"]
    if LONG:
        command += ["--max-examples", "60"]
    else:
        command += ["--phases", "examples,fuzzing", "--max-examples", "4", "--seed", "1"]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, check=False, cwd=tmp_path
    )
    report = found.stdout + found.stderr
    (tmp_path / "report.txt").write_text(report)
    if os.environ.get("MPSEARCH_TEST_SCHEMATHESIS_REPORT"):
        Path(os.environ["MPSEARCH_TEST_SCHEMATHESIS_REPORT"]).write_text(report)
    assert found.returncode == 0, report[-6000:]
    cases = re.search(r"(\d+) generated", report)
    assert cases is not None, report[-3000:]
    assert int(cases[1]) >= (2000 if LONG else 100)
