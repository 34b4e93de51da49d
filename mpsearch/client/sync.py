"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from mpsearch.client.asking import Reference
from mpsearch.client.blocking import Driver
from mpsearch.client.downloading import (
    ReportFormat,
    all_downloaded,
    artifact_downloaded,
    downloaded,
    export_call,
    report_call,
)
from mpsearch.client.link import connection
from mpsearch.client.operations import Operations, problem_of
from mpsearch.client.progress import job_bars
from mpsearch.client.requests import Budgets, JobFields
from mpsearch.client.retrying import Retries
from mpsearch.client.sources import as_source, data_source
from mpsearch.client.steps import told
from mpsearch.client.storing import (
    OnEvent,
    requested,
    searched,
    stored_file,
    stored_table,
    submitted,
)
from mpsearch.client.uploading import OnUpload
from mpsearch.schemas.jobs import Event, Job, JobRequest, JobStatus
from mpsearch.schemas.uploads import HardwareEntry, Stored, StoredKind

if TYPE_CHECKING:
    import httpx2

    from mpsearch.schemas import Allocation, Costs, Frontier, Profile

__all__ = ["Client"]


class Client:
    """A connection to the service; also a context manager, and safe to share between threads.

    ```python
    with Client("http://127.0.0.1:8000") as client:
        allocation = client.search(
            "digits-resnet", "digits", budget={"weight_memory": "0.12x"}, progress=True
        )
    ```

    Every method raises errors of `mpsearch.client.errors`, and tries again as `retries` says; none
    changes anything twice when an answer is lost on the way.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: Retries | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Settle where the service is; nothing is sent.

        Args:
            server: Address; by default `MPSEARCH_SERVER`, or `http://127.0.0.1:8000`.
            api_key: Token; by default `MPSEARCH_API_KEY`.
            timeout: Seconds between two parts of an answer or a body, and at most 10 of them for
                connecting.
            retries: How long to try again.
            transport: Instead of a network connection, such as `in_process.app_in_thread`.
        """
        import httpx2

        settings = connection(server, api_key, timeout)
        self.server = settings.server
        self._operations = Operations(self.server, retries or Retries())
        http = httpx2.Client(transport=transport, **settings.options())
        self._driver = Driver(http, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._driver.http.close()

    def ready(self) -> None:
        """Ask once, without trying again, whether the service takes requests.

        Raises:
            UnreachableError: It gives no answer, or says that it cannot serve now.
        """
        self._driver.run(self._operations.ready())

    def upload_model(
        self,
        model: str | Path | bytes,
        *,
        architecture: str | None = None,
        name: str | None = None,
        on_upload: OnUpload | None = None,
    ) -> Stored:
        """Upload a model; an interrupted upload goes on where it stopped.

        Args:
            model: A `.safetensors`, `.onnx` or `.pt2` file, or its bytes.
            architecture: What `.safetensors` weights belong to, such as `torchvision:resnet18`.
            name: File name to give bytes.
            on_upload: Called with the bytes that the service has, and the bytes in all.

        Returns:
            The stored model; jobs name it by its id.
        """
        source = as_source(model, name)
        return self._driver.run(
            stored_file(self._operations, "model", source, architecture, on_upload)
        )

    def upload_data(
        self, data: object, *, name: str | None = None, on_upload: OnUpload | None = None
    ) -> Stored:
        """Upload a data set.

        Args:
            data: A `.npz` or `.safetensors` file or its bytes; or arrays: inputs, `(inputs,
                targets)`, or a mapping with `inputs`, `targets`, `held_out_inputs` and
                `held_out_targets`.
            name: File name to give bytes and arrays.
            on_upload: Called with the bytes that the service has, and the bytes in all.

        Returns:
            The stored data set; jobs name it by its id.
        """
        source = data_source(data, name)
        return self._driver.run(stored_file(self._operations, "dataset", source, None, on_upload))

    def upload_hardware(self, table: str | Path | bytes, *, name: str | None = None) -> Stored:
        """Upload a cost table.

        Args:
            table: A `.json`, `.yaml` or `.csv` file, or its bytes.
            name: File name to give bytes.

        Returns:
            The stored table; jobs name it by its id.
        """
        return self._driver.run(stored_table(self._operations, as_source(table, name)))

    def stored(self, kind: StoredKind, *, limit: int | None = None) -> Iterator[Stored]:
        """Iterate over uploaded models, data sets or cost tables, newest first.

        Args:
            kind: `model`, `dataset` or `hardware`.
            limit: At most so many; None: all, page by page.

        Returns:
            An iterator.
        """
        return self._driver.iterate(self._operations.stored(kind, limit))

    def submit(
        self,
        model: JobRequest | str | Path | Stored,
        data: object = None,
        *,
        idempotency_key: str | None = None,
        on_upload: OnUpload | None = None,
        **fields: Unpack[JobFields],
    ) -> Job:
        """Queue a job, once, however often it has to be sent.

        Files and arrays are uploaded first, unless the service has the same bytes already.

        Args:
            model: A whole request; or a name, a spec, an uploaded model, or a file here:
                `net.onnx`, `ARCHITECTURE@weights.safetensors`.
            data: A name, a spec, an uploaded data set, a file here, or arrays.
            idempotency_key: Calls with the same key give the same job, from any process; by default
                every call makes a new job.
            on_upload: Called with the bytes that the service has, and the bytes in all.
            **fields: Everything else that `JobRequest` has: `budget`, `options`, `estimator` …

        Returns:
            The job.
        """
        request = requested(self._operations, model, data, fields, on_upload)
        return self._driver.run(submitted(self._operations, request, idempotency_key))

    def job(self, job: Reference) -> Job:
        """Read a job as it stands.

        Args:
            job: The job or its id.

        Returns:
            The job.
        """
        return self._driver.run(self._operations.job(job))

    def jobs(self, *, status: JobStatus | None = None, limit: int | None = None) -> Iterator[Job]:
        """Iterate over jobs, newest first.

        Args:
            status: Only those.
            limit: At most so many; None: all, page by page.

        Returns:
            An iterator.
        """
        return self._driver.iterate(self._operations.jobs(status, limit))

    def events(
        self, job: Reference, *, after: int = 0, timeout: float | None = None
    ) -> Iterator[Event]:
        """Iterate over a job's events, each once and in order, until it has ended.

        A lost connection is made again, and goes on after the last event seen.

        Args:
            job: The job or its id.
            after: Id of the last event that is known.
            timeout: Seconds until `WaitTimeoutError`; None: no limit.

        Returns:
            An iterator.
        """
        return self._driver.iterate(self._operations.follow(job, after=after, timeout=timeout))

    def wait(
        self,
        job: Reference,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        progress: bool = False,
    ) -> Job:
        """Wait until a job has ended, through restarts of the service.

        Args:
            job: The job or its id.
            timeout: Seconds until `WaitTimeoutError`; None: no limit.
            on_event: Called with every event.
            progress: Whether to show bars on stderr, unless `on_event` is given.

        Returns:
            The job, succeeded or not; `result` raises the error of one that did not.
        """
        with ExitStack() as stack:
            if progress and on_event is None:
                on_event = stack.enter_context(job_bars())
            flow = self._operations.follow(job, after=0, timeout=timeout)
            return self._driver.run(told(flow, on_event))

    def search(
        self,
        model: JobRequest | str | Path | Stored,
        data: object = None,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        on_upload: OnUpload | None = None,
        on_event: OnEvent | None = None,
        progress: bool = False,
        **fields: Unpack[JobFields],
    ) -> Allocation:
        """Upload what is local, queue a job, wait for its end, and fetch the result.

        Args:
            model: As in `submit`.
            data: As in `submit`.
            idempotency_key: As in `submit`.
            timeout: As in `wait`.
            on_upload: As in `submit`.
            on_event: As in `wait`.
            progress: As in `wait`.
            **fields: As in `submit`.

        Returns:
            The allocation.
        """
        request = requested(self._operations, model, data, fields, on_upload)
        with ExitStack() as stack:
            if progress and on_event is None:
                on_event = stack.enter_context(job_bars())
            return self._driver.run(
                searched(
                    self._operations, request, idempotency_key, timeout=timeout, on_event=on_event
                )
            )

    def result(self, job: Reference) -> Allocation:
        """Fetch the allocation of a job that succeeded.

        Args:
            job: The job or its id.

        Returns:
            The allocation.
        """
        return self._driver.run(self._operations.result(job))

    def frontier(self, job: Reference, resource: str | None = None) -> Frontier:
        """Fetch the Pareto-optimal allocations between predicted loss and a resource.

        Args:
            job: The job or its id.
            resource: Which; None: that of the job's first budget.

        Returns:
            The frontier.
        """
        return self._driver.run(self._operations.frontier(job, resource))

    def profile(self, job: Reference) -> Profile:
        """Fetch the predicted losses that a job solved with.

        Args:
            job: The job or its id.

        Returns:
            The profile.
        """
        return self._driver.run(self._operations.profile(job))

    def costs(self, job: Reference) -> Costs:
        """Fetch the prices that a job solved with.

        Args:
            job: The job or its id.

        Returns:
            The costs.
        """
        return self._driver.run(self._operations.costs(job))

    def report(
        self,
        job: Reference,
        target: str | Path,
        *,
        format: ReportFormat = "html",  # noqa: A002
    ) -> Path:
        """Download the report of a job.

        Args:
            job: The job or its id.
            target: File to write.
            format: `html` for the whole report, `png` for the frontier, `csv` for the layers, `txt`
                for the log.

        Returns:
            The file written.
        """
        call = report_call(job, format)
        return self._driver.run(downloaded(self._operations, call, target))

    def download(self, job: Reference, artifact: str, target: str | Path) -> Path:
        """Download an artifact of a job and check its hash.

        Args:
            job: The job or its id.
            artifact: Name of one of `Job.artifacts`.
            target: File to write, or a folder that exists.

        Returns:
            The file written.
        """
        return self._driver.run(artifact_downloaded(self._operations, job, artifact, target))

    def download_all(self, job: Reference, folder: str | Path) -> list[Path]:
        """Download every artifact of a job and check their hashes.

        Args:
            job: The job or its id.
            folder: Where to write; made if it is missing.

        Returns:
            The files written.
        """
        return self._driver.run(all_downloaded(self._operations, job, Path(folder)))

    def export(self, job: Reference, to: str, target: str | Path) -> Path:
        """Download the allocation of a job in another tool's language.

        Args:
            job: The job or its id.
            to: Name of the export target.
            target: File to write.

        Returns:
            The file written.
        """
        return self._driver.run(downloaded(self._operations, export_call(job, to), target))

    def solve(self, job: Reference, budget: Budgets, **settings: Any) -> Allocation:
        """Solve a finished job's scores for another budget, in milliseconds.

        Args:
            job: The job or its id.
            budget: Resource -> amount.
            **settings: `solver` and `monotone`, as in `ResolveRequest`.

        Returns:
            The allocation; it was not run on the model.
        """
        return self._driver.run(self._operations.resolve(job, budget, settings))

    def solve_problem(
        self,
        problem: Mapping[str, Any] | str | Path,
        *,
        method: str | None = None,
        gap: float | None = None,
        time_limit: float | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Solve a problem file, without any model.

        Args:
            problem: The problem, or the path of its JSON file.
            method: Solver method; None: the service chooses.
            gap: Relative gap to prove.
            time_limit: Seconds.
            seed: Seed of everything random.

        Returns:
            The solution: `status`, `objective`, `bound`, `gap`, `choice`, `usage` …
        """
        settings = {"method": method, "gap": gap, "time_limit": time_limit, "seed": seed}
        return self._driver.run(self._operations.solve_problem(problem_of(problem), settings))

    def cancel(self, job: Reference) -> Job:
        """End a job that has not ended.

        Args:
            job: The job or its id.

        Returns:
            The job as it stands: cancelled, or as it had ended.
        """
        return self._driver.run(self._operations.cancel(job))

    def delete(self, reference: Reference) -> None:
        """Delete an ended job, or something uploaded.

        Args:
            reference: The object or its id.
        """
        self._driver.run(self._operations.delete(reference))

    def formats(self) -> list[dict[str, Any]]:
        """List the numeric formats that the service knows."""
        return self._driver.run(self._operations.listing("formats"))

    def estimators(self) -> list[dict[str, Any]]:
        """List the estimators that the service knows."""
        return self._driver.run(self._operations.listing("estimators"))

    def solvers(self) -> list[dict[str, Any]]:
        """List the solver methods that the service knows."""
        return self._driver.run(self._operations.listing("solvers"))

    def devices(self) -> Iterator[HardwareEntry]:
        """Iterate over what jobs may name as hardware: shipped devices, then uploaded tables.

        Returns:
            An iterator.
        """
        return self._driver.iterate(self._operations.devices(None))

    def architectures(self) -> list[dict[str, Any]]:
        """List the architectures that uploaded weights may belong to."""
        return self._driver.run(self._operations.listing("architectures"))
