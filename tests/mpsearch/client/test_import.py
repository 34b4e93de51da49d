from __future__ import annotations

import inspect
import subprocess
import sys
import typing

import pytest

import mpsearch.client
from mpsearch.client import AsyncClient, Client, JobRequest
from mpsearch.client.requests import JobFields

HEAVY = ["torch", "fastapi", "starlette", "sqlalchemy", "numpy", "scipy", "rich", "mpsearch_api"]


@pytest.mark.parametrize("names", ["Client, AsyncClient", "*"])
def test_importing_the_client_imports_nothing_heavy(names: str) -> None:
    code = f"import sys; from mpsearch.client import {names}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(found.stdout.split())


def test_making_a_client_and_a_request_imports_no_torch() -> None:
    code = (
        "import sys; from mpsearch.client import Client\n"
        "client = Client('http://127.0.0.1:1')\n"
        "from mpsearch.client.requests import job_request\n"
        "job_request('m', 'd', {'budget': {'latency': '3 ms'}})\n"
        "client.close(); print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(found.stdout.split())


def test_all_that_is_public_exists() -> None:
    assert sorted(mpsearch.client.__all__) == mpsearch.client.__all__
    assert all(hasattr(mpsearch.client, name) for name in mpsearch.client.__all__)


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(function).parameters) for name, function in public
                if not name.startswith("_")}  # fmt: skip

    assert methods(Client) == methods(AsyncClient)


def test_keywords_of_a_submission_are_the_fields_of_a_request() -> None:
    assert set(typing.get_type_hints(JobFields)) == set(JobRequest.model_fields) - {"model", "data"}
