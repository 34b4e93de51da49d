"""Compose files follow the Compose specification, by its JSON schema and by Compose itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_files import CLUSTER, ROOT, SINGLE

FILES = pytest.mark.parametrize("path", [SINGLE, CLUSTER], ids=lambda path: path.name)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    package = pytest.importorskip(
        "check_jsonschema",
        reason="no check-jsonschema, which carries the schema of the Compose spec",
    )
    folder = resources.files(package) / "builtin_schemas" / "vendor"
    found: dict[str, Any] = json.loads((folder / "compose-spec.json").read_text())
    return found


@FILES
def test_a_compose_file_follows_the_specification(schema: dict[str, Any], path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.validators.validator_for(schema)(schema)
    faults = validator.iter_errors(yaml.safe_load(path.read_text()))
    assert [f"{fault.json_path}: {fault.message}" for fault in faults] == []


def test_the_schema_refuses_what_is_not_compose(schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    wrong = yaml.safe_load(CLUSTER.read_text())
    wrong["services"]["database"]["helthcheck"] = {}
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert "helthcheck" in " ".join(fault.message for fault in validator.iter_errors(wrong))


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """The command of Docker Compose; it needs no engine to read a file."""
    beside = Path(sys.executable).with_name("docker-compose")
    found = shutil.which("docker-compose") or (str(beside) if beside.exists() else None)
    if found:
        return [found]
    docker = shutil.which("docker")
    if (
        docker
        and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    ):
        return [docker, "compose"]
    pytest.skip("no Docker Compose")


def _read(compose: list[str], path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    command = [*compose, "--file", str(path), "config", "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_compose_reads_the_cluster(compose: list[str], tmp_path: Path) -> None:
    answer = _read(compose, CLUSTER, MPSEARCH_SECRETS=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["services"]["ray-worker"]["deploy"]["replicas"] == 2
    assert found["networks"]["cluster"]["internal"] is True


def test_compose_starts_nothing_without_secrets(compose: list[str]) -> None:
    answer = _read(compose, CLUSTER)
    # Its packaged form on PyPI ends with 0 all the same.
    assert not answer.stdout
    assert "docker/secrets.sh" in answer.stderr
