"""What dispatchers count, and how the server, another process, comes to show it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from mpsearch.schemas.document import write_atomically
from mpsearch.schemas.jobs import Stage
from mpsearch_api.store.port import Update

__all__ = ["DispatcherMetrics", "JobMetrics"]

SUFFIX = ".prom"
KEPT = 32
"""Files of dispatchers kept, the newest; counters of older ones are forgotten."""


class JobMetrics:
    """Counters of one dispatcher, written to a file that the server reads."""

    def __init__(self, data_dir: Path, dispatcher: str) -> None:
        """Start at zero.

        Args:
            data_dir: Of the service.
            dispatcher: Name of the dispatcher; label of every figure.
        """
        self._path = data_dir / "metrics" / f"{dispatcher}{SUFFIX}"
        self._registry = CollectorRegistry()
        self._name = dispatcher
        self._stage = Histogram(
            "mpsearch_job_stage_seconds",
            "Time that stages of jobs took",
            ["dispatcher", "stage", "cached"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
            registry=self._registry,
        )
        self._ended = Counter(
            "mpsearch_jobs_ended",
            "Jobs that ended here, by status",
            ["dispatcher", "status"],
            registry=self._registry,
        )
        self._failures = Counter(
            "mpsearch_job_failures",
            "Jobs that failed here, by kind",
            ["dispatcher", "kind"],
            registry=self._registry,
        )
        self._deaths = Counter(
            "mpsearch_worker_deaths",
            "Processes of jobs that died and whose jobs were queued again",
            ["dispatcher"],
            registry=self._registry,
        )
        self._gap = Histogram(
            "mpsearch_solver_gap",
            "Relative gap of the answers",
            ["dispatcher"],
            buckets=(0, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1),
            registry=self._registry,
        )
        self._running = Gauge(
            "mpsearch_running_jobs", "Jobs running here", ["dispatcher"], registry=self._registry
        )

    def stage(self, stage: Stage, seconds: float, *, cached: bool) -> None:
        """Count a stage.

        Args:
            stage: Which.
            seconds: How long it took.
            cached: Whether it was answered from earlier work.
        """
        self._stage.labels(self._name, stage, str(cached).lower()).observe(seconds)

    def told(self, update: Update) -> None:
        """Count what a job told.

        Args:
            update: What it told.
        """
        gap = update.data.get("gap")
        if update.stage == "solve" and isinstance(gap, (int, float)):
            self._gap.labels(self._name).observe(gap)

    def ended(self, status: str, kind: str | None = None) -> None:
        """Count the end of a job.

        Args:
            status: Its status.
            kind: Of its failure.
        """
        self._ended.labels(self._name, status).inc()
        if kind is not None:
            self._failures.labels(self._name, kind).inc()

    def died(self) -> None:
        """Count a worker that died."""
        self._deaths.labels(self._name).inc()

    def write(self, running: int) -> None:
        """Write everything down.

        Args:
            running: Jobs running now.
        """
        self._running.labels(self._name).set(running)
        write_atomically(self._path, generate_latest(self._registry))

    def close(self) -> None:
        """Write the last figures, and forget the oldest dispatchers."""
        self.write(0)
        files = sorted(self._path.parent.glob(f"*{SUFFIX}"), key=_changed)
        for path in files[:-KEPT]:
            path.unlink(missing_ok=True)


class DispatcherMetrics(Collector):
    """What all dispatchers of a data folder wrote down, for a registry of the server."""

    def __init__(self, data_dir: Path) -> None:
        """Read from a folder.

        Args:
            data_dir: Of the service.
        """
        self._folder = data_dir / "metrics"

    def collect(self) -> Iterator[Metric]:
        """Merge the files.

        Yields:
            Metrics, those of all dispatchers together.
        """
        merged: dict[str, Metric] = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(OSError):
                for family in text_string_to_metric_families(path.read_text()):
                    if family.name in merged:
                        merged[family.name].samples += family.samples
                    else:
                        merged[family.name] = family
        yield from merged.values()


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
