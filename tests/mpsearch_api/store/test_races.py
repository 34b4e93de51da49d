"""Several processes on one database."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.contract import a_request

OPEN = (
    "import json, sys\n"
    "from mpsearch_api.settings import Settings\n"
    "from mpsearch_api.store import open_store\n"
    "from mpsearch_api.store.contract import a_request\n"
    "from mpsearch_api.store.port import Update\n"
    "store = open_store(Settings(data_dir=sys.argv[1], database_url=sys.argv[2]))\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
)
CLAIM_ALL = (
    OPEN + "taken = []\n"
    "while (claim := store.jobs.claim('w', 600)) is not None:\n"
    "    taken.append(claim.job)\n"
    "    assert store.jobs.report(claim, [Update('progress', 'load', 0.5)])\n"
    "    assert store.jobs.complete(claim, [])\n"
    "print(json.dumps(taken))\n"
)
SUBMIT_ALL = (
    OPEN + "print(json.dumps([store.jobs.submit('ann', a_request(), idempotency_key=f'k{i}')[0].id"
    " for i in range(15)]))\n"
)
SUBMIT_FOR_EVER = (
    OPEN + "while True:\n    print(store.jobs.submit('ann', a_request())[0].id, flush=True)\n"
)


@pytest.fixture
def store(service_settings: Settings) -> Iterator[Store]:
    store = open_store(service_settings)
    yield store
    store.close()


def start(script: str, settings: Settings) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(settings.data_dir), settings.database]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def run_at_once(script: str, settings: Settings, count: int) -> list[list[str]]:
    processes = [start(script, settings) for _ in range(count)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return [json.loads(answer) for answer in answers]


@pytest.mark.slow
def test_processes_that_race_claim_every_job_once(store: Store, service_settings: Settings) -> None:
    made = [store.jobs.submit(f"t{i % 4}", a_request())[0].id for i in range(40)]
    taken = run_at_once(CLAIM_ALL, service_settings, 4)
    assert sorted(job for jobs in taken for job in jobs) == sorted(made)
    assert store.jobs.counts()["succeeded"] == 40
    assert all(store.jobs.get(None, job).attempt == 1 for job in made)


def test_processes_that_submit_the_same_make_one_job_each(
    store: Store, service_settings: Settings
) -> None:
    answers = run_at_once(SUBMIT_ALL, service_settings, 3)
    assert answers[0] == answers[1] == answers[2]
    assert store.jobs.counts()["queued"] == 15


def test_an_accepted_submission_survives_the_server_being_killed(
    store: Store, service_settings: Settings
) -> None:
    process = start(SUBMIT_FOR_EVER, service_settings)
    process.stdin.write("\n")
    process.stdin.flush()
    told = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    # The last line may have been cut off while it was written.
    told += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    for job in told:
        assert store.jobs.get("ann", job.strip()) is not None
    # Nothing holds the database: the next to come writes at once.
    assert store.jobs.submit("ann", a_request())[1]
