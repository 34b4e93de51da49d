"""A running application with real stores, and jobs that ended without a model having run."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from starlette.testclient import TestClient

from mpsearch.allocating import allocate, frontier
from mpsearch.schemas import Costs, Profile
from mpsearch.schemas.jobs import Artifact, Failure, JobRequest
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.http.service import Service
from mpsearch_api.store import Store

BASE_URL = "http://127.0.0.1"
CLIENT = ("127.0.0.1", 50_000)
JOB = {
    "model": "digits-resnet",
    "data": "digits",
    "options": ["w2a8", "w4a8", "w8a8"],
    "budget": {"weight_memory": "0.12x"},
}


@dataclass
class Site:
    """A running application and what lies behind it."""

    client: TestClient
    service: Service
    log: io.StringIO = field(default_factory=io.StringIO)

    @property
    def store(self) -> Store:
        return self.service.store

    @property
    def blobs(self) -> BlobStore:
        return self.service.blobs

    def key(self, *scopes: str, tenant: str | None = None) -> dict[str, str]:
        """Make a key and give the header that shows it."""
        _, token = self.store.keys.create("test", scopes or ("write",), tenant=tenant)
        return {"Authorization": f"Bearer {token}"}

    def queued(self, tenant: str = "local") -> str:
        """Queue a job."""
        job, _ = self.store.jobs.submit(tenant, JobRequest(**JOB))
        return job.id

    def finished(self, tenant: str = "local") -> str:
        """Queue a job and end it with the artifacts of a small search."""
        job = self.queued(tenant)
        claim = self.store.jobs.claim("test", 60.0)
        assert claim is not None
        assert claim.job == job
        artifacts = []
        for name, (media_type, content) in small_results().items():
            blob = self.blobs.put([content])
            artifacts.append(Artifact(name=name, media_type=media_type, size=blob.size,
                                      sha256=blob.sha256))  # fmt: skip
        assert self.store.jobs.complete(claim, artifacts)
        return job

    def failed(self, tenant: str = "local") -> str:
        """Queue a job and fail it."""
        job = self.queued(tenant)
        claim = self.store.jobs.claim("test", 60.0)
        assert claim is not None
        assert self.store.jobs.fail(claim, Failure(kind="memory", message="needs 5 GiB"))
        return job


MakeSite = Callable[..., AbstractContextManager[Site]]


@functools.cache
def small_results() -> dict[str, tuple[str, bytes]]:
    """Solve three groups at two options, and write down what a job would."""
    groups, options = ["conv1", "conv2", "fc"], ["w2a8", "w8a8"]
    profile = Profile(
        groups=groups,
        options=options,
        loss=np.array([[0.5, 0.01], [0.2, 0.02], [0.9, 0.0]]),
        stderr=np.zeros((3, 2)),
        estimator="measured_loss",
    )
    costs = Costs(
        groups=groups,
        options=options,
        values={"weight_memory": np.array([[25.0, 100.0], [50.0, 200.0], [10.0, 40.0]])},
        units={"weight_memory": "B"},
        baseline={"weight_memory": 1360.0},
    )
    answer = allocate(profile, costs, {"weight_memory": "200 B"})
    curve = frontier(profile, costs)
    return {
        "allocation.json": ("application/json", answer.model_dump_json().encode()),
        "profile.json": ("application/json", profile.model_dump_json().encode()),
        "costs.json": ("application/json", costs.model_dump_json().encode()),
        "frontier.json": ("application/json", curve.model_dump_json().encode()),
        "report.html": ("text/html; charset=utf-8", b"<h1>Report</h1>"),
        "frontier.png": ("image/png", b"\x89PNG\r\n\x1a\n"),
        "layers.csv": ("text/csv; charset=utf-8", b"layer,option\nconv1,w2a8\n"),
        "log.txt": ("text/plain; charset=utf-8", json.dumps({"event": "x"}).encode()),
    }
