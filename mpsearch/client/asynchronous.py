"""The client for asyncio and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from mpsearch.client.asking import Reference
from mpsearch.client.awaiting import AsyncDriver
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

__all__ = ["AsyncClient"]


class AsyncClient:
    """A connection to the service that awaits; methods and errors are those of `Client`.

    ```python
    async with AsyncClient("http://127.0.0.1:8000") as client:
        job = await client.submit("digits-resnet", "digits", budget={"weight_memory": "0.12x"})
        async for event in client.events(job):
            print(event.stage, event.progress)
        allocation = await client.result(job)
    ```
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: Retries | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Settle where the service is; nothing is sent.

        Args:
            server: Address; by default `MPSEARCH_SERVER`, or `http://127.0.0.1:8000`.
            api_key: Token; by default `MPSEARCH_API_KEY`.
            timeout: Seconds between two parts of an answer or a body, and at most 10 of them for
                connecting.
            retries: How long to try again.
            transport: Instead of a network connection, such as `httpx2.ASGITransport` or that of
                `in_process.app_here`.
        """
        import httpx2

        settings = connection(server, api_key, timeout)
        self.server = settings.server
        self._operations = Operations(self.server, retries or Retries())
        http = httpx2.AsyncClient(transport=transport, **settings.options())
        self._driver = AsyncDriver(http, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.http.aclose()

    async def ready(self) -> None:
        """As `Client.ready`."""
        await self._driver.run(self._operations.ready())

    async def upload_model(
        self,
        model: str | Path | bytes,
        *,
        architecture: str | None = None,
        name: str | None = None,
        on_upload: OnUpload | None = None,
    ) -> Stored:
        """As `Client.upload_model`."""
        source = as_source(model, name)
        return await self._driver.run(
            stored_file(self._operations, "model", source, architecture, on_upload)
        )

    async def upload_data(
        self, data: object, *, name: str | None = None, on_upload: OnUpload | None = None
    ) -> Stored:
        """As `Client.upload_data`."""
        source = data_source(data, name)
        return await self._driver.run(
            stored_file(self._operations, "dataset", source, None, on_upload)
        )

    async def upload_hardware(
        self, table: str | Path | bytes, *, name: str | None = None
    ) -> Stored:
        """As `Client.upload_hardware`."""
        return await self._driver.run(stored_table(self._operations, as_source(table, name)))

    def stored(self, kind: StoredKind, *, limit: int | None = None) -> AsyncIterator[Stored]:
        """As `Client.stored`."""
        return self._driver.iterate(self._operations.stored(kind, limit))

    async def submit(
        self,
        model: JobRequest | str | Path | Stored,
        data: object = None,
        *,
        idempotency_key: str | None = None,
        on_upload: OnUpload | None = None,
        **fields: Unpack[JobFields],
    ) -> Job:
        """As `Client.submit`."""
        request = requested(self._operations, model, data, fields, on_upload)
        return await self._driver.run(submitted(self._operations, request, idempotency_key))

    async def job(self, job: Reference) -> Job:
        """As `Client.job`."""
        return await self._driver.run(self._operations.job(job))

    def jobs(
        self, *, status: JobStatus | None = None, limit: int | None = None
    ) -> AsyncIterator[Job]:
        """As `Client.jobs`."""
        return self._driver.iterate(self._operations.jobs(status, limit))

    def events(
        self, job: Reference, *, after: int = 0, timeout: float | None = None
    ) -> AsyncIterator[Event]:
        """As `Client.events`."""
        return self._driver.iterate(self._operations.follow(job, after=after, timeout=timeout))

    async def wait(
        self,
        job: Reference,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        progress: bool = False,
    ) -> Job:
        """As `Client.wait`."""
        with ExitStack() as stack:
            if progress and on_event is None:
                on_event = stack.enter_context(job_bars())
            flow = self._operations.follow(job, after=0, timeout=timeout)
            return await self._driver.run(told(flow, on_event))

    async def search(
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
        """As `Client.search`."""
        request = requested(self._operations, model, data, fields, on_upload)
        with ExitStack() as stack:
            if progress and on_event is None:
                on_event = stack.enter_context(job_bars())
            return await self._driver.run(
                searched(
                    self._operations, request, idempotency_key, timeout=timeout, on_event=on_event
                )
            )

    async def result(self, job: Reference) -> Allocation:
        """As `Client.result`."""
        return await self._driver.run(self._operations.result(job))

    async def frontier(self, job: Reference, resource: str | None = None) -> Frontier:
        """As `Client.frontier`."""
        return await self._driver.run(self._operations.frontier(job, resource))

    async def profile(self, job: Reference) -> Profile:
        """As `Client.profile`."""
        return await self._driver.run(self._operations.profile(job))

    async def costs(self, job: Reference) -> Costs:
        """As `Client.costs`."""
        return await self._driver.run(self._operations.costs(job))

    async def report(
        self,
        job: Reference,
        target: str | Path,
        *,
        format: ReportFormat = "html",  # noqa: A002
    ) -> Path:
        """As `Client.report`."""
        call = report_call(job, format)
        return await self._driver.run(downloaded(self._operations, call, target))

    async def download(self, job: Reference, artifact: str, target: str | Path) -> Path:
        """As `Client.download`."""
        return await self._driver.run(artifact_downloaded(self._operations, job, artifact, target))

    async def download_all(self, job: Reference, folder: str | Path) -> list[Path]:
        """As `Client.download_all`."""
        return await self._driver.run(all_downloaded(self._operations, job, Path(folder)))

    async def export(self, job: Reference, to: str, target: str | Path) -> Path:
        """As `Client.export`."""
        return await self._driver.run(downloaded(self._operations, export_call(job, to), target))

    async def solve(self, job: Reference, budget: Budgets, **settings: Any) -> Allocation:
        """As `Client.solve`."""
        return await self._driver.run(self._operations.resolve(job, budget, settings))

    async def solve_problem(
        self,
        problem: Mapping[str, Any] | str | Path,
        *,
        method: str | None = None,
        gap: float | None = None,
        time_limit: float | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """As `Client.solve_problem`."""
        settings = {"method": method, "gap": gap, "time_limit": time_limit, "seed": seed}
        return await self._driver.run(self._operations.solve_problem(problem_of(problem), settings))

    async def cancel(self, job: Reference) -> Job:
        """As `Client.cancel`."""
        return await self._driver.run(self._operations.cancel(job))

    async def delete(self, reference: Reference) -> None:
        """As `Client.delete`."""
        await self._driver.run(self._operations.delete(reference))

    async def formats(self) -> list[dict[str, Any]]:
        """As `Client.formats`."""
        return await self._driver.run(self._operations.listing("formats"))

    async def estimators(self) -> list[dict[str, Any]]:
        """As `Client.estimators`."""
        return await self._driver.run(self._operations.listing("estimators"))

    async def solvers(self) -> list[dict[str, Any]]:
        """As `Client.solvers`."""
        return await self._driver.run(self._operations.listing("solvers"))

    def devices(self) -> AsyncIterator[HardwareEntry]:
        """As `Client.devices`."""
        return self._driver.iterate(self._operations.devices(None))

    async def architectures(self) -> list[dict[str, Any]]:
        """As `Client.architectures`."""
        return await self._driver.run(self._operations.listing("architectures"))
