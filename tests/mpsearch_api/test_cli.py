"""`mpsearch serve` and `mpsearch keys`, as processes and as commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MAIN = [sys.executable, "-c", "from mpsearch.cli import main; main()"]
JOB = {
    "model": "digits-resnet",
    "data": "digits",
    "options": ["w2a8", "w8a8"],
    "estimator": "kurtosis",
    "budget": {"weight_memory": "0.12x"},
    "verify": False,
}


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", **more}
    return subprocess.run(
        [*MAIN, *words], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `mpsearch serve` on a free port."""
    command = [*MAIN, "serve", "--port", "0", "--data-dir", str(folder), "--no-page", *options]
    log = folder.parent / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stderr=output, env=os.environ | {"COLUMNS": "200"}, start_new_session=True,
            text=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while "serves on http" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        base = log.read_text().split("serves on ")[1].split()[0]
        yield process, base
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url: str, body: object = None, **headers: str) -> tuple[int, object]:
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def dispatcher_of(base: str, folder: Path) -> int:
    """Wait until a dispatcher is ready, and give its process id."""
    from mpsearch_api.execution.folders import dispatchers

    deadline = time.monotonic() + 120
    while ask(f"{base}/readyz")[0] != 200:
        assert time.monotonic() < deadline, ask(f"{base}/readyz")
        time.sleep(0.2)
    return max(dispatchers(folder), key=lambda state: state.time).pid


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_serve_runs_jobs_restarts_its_dispatcher_and_ends_gracefully(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as (process, base):
        first = dispatcher_of(base, folder)
        os.kill(first, signal.SIGKILL)
        assert gone(first)
        deadline = time.monotonic() + 60
        while dispatcher_of(base, folder) == first:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        status, job = ask(f"{base}/v1/jobs", JOB)
        assert status == 202
        found = job
        while found["status"] in {"queued", "running"}:
            _, found = ask(f"{base}/v1/jobs/{job['id']}?wait=30")
        assert found["status"] == "succeeded", found
        assert ask(f"{base}/v1/jobs/{job['id']}/result")[1]["layers"]
        with urllib.request.urlopen(f"{base}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        assert 'mpsearch_jobs{status="succeeded"} 1.0' in text
        second = dispatcher_of(base, folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert gone(second)
    said = (tmp_path / "serve.log").read_text()
    assert "OPEN MODE" in said
    assert "dispatcher ended; it is started again" in said


@pytest.mark.slow
def test_a_killed_server_takes_its_dispatcher_along(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as (process, base):
        dispatcher = dispatcher_of(base, folder)
        process.kill()
        process.wait()
        assert gone(dispatcher)


def test_a_waiting_client_does_not_hold_the_server_up(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--no-dispatch") as (process, base):
        _, job = ask(f"{base}/v1/jobs", JOB)
        waiting = subprocess.Popen(
            [sys.executable, "-c", "import sys, urllib.request as u; u.urlopen(sys.argv[1]).read()",
             f"{base}/v1/jobs/{job['id']}?wait=50"]
        )  # fmt: skip
        stream = subprocess.Popen(
            [sys.executable, "-c", "import sys, urllib.request as u;"
             "u.urlopen(u.Request(sys.argv[1], headers={'Accept': 'text/event-stream'})).read()",
             f"{base}/v1/jobs/{job['id']}/events"]
        )  # fmt: skip
        time.sleep(3)
        assert (waiting.poll(), stream.poll()) == (None, None)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert time.monotonic() - began < 30
        assert (waiting.wait(10), stream.wait(10)) == (0, 0)


def test_open_mode_beyond_loopback_ends_with_bad_usage(tmp_path: Path) -> None:
    found = run("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path),
                MPSEARCH_OPEN_MODE="true")  # fmt: skip
    assert found.returncode == 2
    assert "open mode" in found.stderr


def test_a_setting_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    found = run("serve", "--data-dir", str(tmp_path), MPSEARCH_BODY_BYTES="lots")
    assert found.returncode == 2
    assert "MPSEARCH_BODY_BYTES" in found.stderr


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = run("serve", "--port", str(port), "--data-dir", str(tmp_path))
    assert found.returncode == 4
    assert "--port" in found.stderr


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    from mpsearch_api.settings import Settings
    from mpsearch_api.store import open_store

    place = ("--data-dir", str(tmp_path))
    made = run("keys", "create", "ci", "--scope", "read", "--expires", "30d", "--json", *place)
    assert made.returncode == 0, made.stderr
    record = json.loads(made.stdout)
    plain = run("keys", "create", "laptop", "--tenant", "local", *place)
    token = plain.stdout.strip()
    store = open_store(Settings(data_dir=tmp_path))
    try:
        found = store.keys.check(token)
        assert found is not None
        assert (found.tenant, found.scopes) == ("local", {"read", "write"})
        assert store.keys.check(record["key"]) is not None
        listed = run("keys", "list", "--json", *place)
        assert [each["name"] for each in json.loads(listed.stdout)] == ["ci", "laptop"]
        shown = run("keys", "list", *place)
        for secret in (token, record["key"]):
            assert secret.rsplit("_", 1)[1] not in listed.stdout + shown.stderr
        assert run("keys", "revoke", record["id"], *place).returncode == 0
        assert store.keys.check(record["key"]) is None
        assert run("keys", "revoke", record["id"], *place).returncode == 2
    finally:
        store.close()


@pytest.mark.parametrize(
    "words",
    [
        ("create", "x", "--scope", "root"),
        ("create", "x", "--expires", "soon"),
        ("create", "x", "--expires", "2001-01-01"),
        ("create", "x", "--tenant", "../x"),
        ("revoke", "key_nothing"),
    ],
)
def test_keys_that_mean_nothing_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run("keys", *words, "--data-dir", str(tmp_path)).returncode == 2


def test_help_imports_neither_fastapi_nor_torch() -> None:
    program = (
        "import sys\n"
        "from mpsearch.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "loaded = {'fastapi', 'torch', 'sqlalchemy', 'uvicorn'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 0, found.stderr
    assert "serve" in found.stdout


def test_without_the_api_extra_the_commands_name_it(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['pydantic_settings'] = None\n"
        "from mpsearch.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for words in (("serve",), ("keys", "list")):
        found = subprocess.run(
            [sys.executable, "-c", program, *words, "--data-dir", str(tmp_path)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert found.returncode == 4, found.stderr
        assert "mpsearch[api" in found.stderr


def test_the_server_takes_as_many_open_files_as_it_may() -> None:
    script = (
        "import resource\n"
        "from mpsearch_api.serving import _raise_open_files\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "_raise_open_files()\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    soft, hard = map(int, found.stdout.split())
    assert soft == (65_536 if hard < 0 else min(hard, 65_536))
