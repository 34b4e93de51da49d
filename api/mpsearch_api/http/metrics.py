"""What Prometheus reads of the service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from mpsearch_api.execution.metrics import DispatcherMetrics

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server process, and those of the dispatchers beside it."""

    def __init__(self, data_dir: Path) -> None:
        """Start every counter at nothing.

        Args:
            data_dir: Of the service, where dispatchers write what they counted.
        """
        self.registry = CollectorRegistry()
        self.registry.register(DispatcherMetrics(data_dir))
        self.requests = Histogram(
            "mpsearch_http_request_seconds",
            "Time from request to the last byte of the answer; streams and waits are left out",
            ["method", "route", "status"],
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10),
        )
        self.solves = Histogram(
            "mpsearch_solve_seconds",
            "Time of synchronous solves, queueing included",
            ["outcome"],
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.jobs = Gauge(
            "mpsearch_jobs", "Jobs by status; queued is the queue's depth", ["status"],
            registry=self.registry,
        )  # fmt: skip

    @contextmanager
    def solving(self) -> Iterator[None]:
        """Time a synchronous solve.

        Yields:
            Nothing.
        """
        began = time.perf_counter()
        outcome = "answered"
        try:
            yield
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            self.solves.labels(outcome).observe(time.perf_counter() - began)

    def text(self) -> bytes:
        """Write everything in the exposition format."""
        return generate_latest(self.registry)
