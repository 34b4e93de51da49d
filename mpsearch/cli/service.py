"""`mpsearch submit | jobs | watch | cancel | result`: the service, through the client."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mpsearch.cli import arguments as args
from mpsearch.cli.console import print_document, show
from mpsearch.errors import InputError

if TYPE_CHECKING:
    from mpsearch.client import Client, Job
    from mpsearch.client.requests import JobFields
    from mpsearch.client.uploading import OnUpload
    from mpsearch.gates import Gate
    from mpsearch.schemas import Allocation
    from mpsearch.schemas.jobs import Event

__all__ = [
    "cancel_command",
    "jobs_command",
    "result_command",
    "submit_command",
    "watch_command",
]

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        help="Address of the service.",
        envvar="MPSEARCH_SERVER",
        show_default="http://127.0.0.1:8000",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="API key; better given in the environment, where other users do not see it.",
        envvar="MPSEARCH_API_KEY",
        show_envvar=True,
        show_default=False,
    ),
]
JobArgument = Annotated[str, typer.Argument(help="Id of the job, such as job_…")]
FolderOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder to download everything to.", show_default=False),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", help="Seconds to wait; the job goes on after them.", min=0, show_default="none"
    ),
]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def submit_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A name the service knows, the id of an uploaded model, or a file here, which is "
            "uploaded: FILE.onnx, ARCHITECTURE@WEIGHTS.safetensors."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="A name the service knows, the id of uploaded data, or a file here, which is "
            "uploaded: FILE.npz, FILE.safetensors.",
            show_default=False,
        ),
    ],
    options: args.OptionsOption = "w2a8,w3a8,w4a8,w6a8,w8a8",
    budget: args.BudgetsOption = [],  # noqa: B006 - typer reads the default, nothing changes it
    estimator: args.EstimatorOption = "measured_loss",
    setting: args.SettingOption = [],  # noqa: B006
    loss: args.LossOption = None,
    samples: args.SamplesOption = None,
    memory_limit: args.MemoryOption = None,
    hardware: args.HardwareOption = None,
    batch: args.BatchOption = None,
    context: args.ContextOption = 1,
    groups_for: args.GroupsForOption = None,
    group: args.GroupOption = [],  # noqa: B006
    fix: args.FixOption = [],  # noqa: B006
    skip: args.SkipOption = [],  # noqa: B006
    solver: args.MethodOption = "auto",
    gap: args.GapOption = 1e-6,
    time_limit: args.TimeLimitOption = None,
    goal: args.GoalOption = None,
    max_drop: args.MaxDropOption = None,
    refine: args.RefineOption = None,
    clamp: args.ClampOption = False,
    no_verify: args.NoVerifyOption = False,
    seed: args.SeedOption = 0,
    cpus: Annotated[int, typer.Option("--cpus", help="Threads the job may use.", min=1)] = 1,
    memory: Annotated[str, typer.Option("--memory", help="Memory the job may use.")] = "4GiB",
    job_time: Annotated[
        float, typer.Option("--job-time", help="Seconds the job may take.", min=0)
    ] = 3600.0,
    label: Annotated[str, typer.Option("--label", help="A name for people.")] = "",
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            help="Submitting again with the same key gives the same job.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
    timeout: TimeoutOption = None,
    fail_if: args.FailIfOption = [],  # noqa: B006
    out: FolderOption = None,
    server: ServerOption = None,
    api_key: KeyOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """Have the service search: upload what is local, queue the job, and with --wait follow it.

        mpsearch submit digits-resnet --data digits --budget weight_memory=0.12x --wait

    In a pipeline, which fails with exit code 5 when a gate holds and 3 when no allocation fits:

        mpsearch submit torchvision:resnet18@w.safetensors --data calibration.npz
            --budget weight_memory=0.25x --wait --fail-if 'accuracy_drop > 1%' --out artifacts

    Without --wait the id of the job is printed on stdout. --fail-if and --out imply --wait.
    """
    gates = _gates(fail_if, verified=not no_verify)
    _check_folder(out)
    fields: JobFields = {
        "options": args.options_of(options),
        "budget": args.budgets_of(budget),
        "estimator": estimator,
        "settings": args.settings_of(setting),
        "loss": loss,
        "samples": samples,
        "memory_limit": args.memory_of(memory_limit),
        "hardware": hardware,
        "batch": batch,
        "context": context,
        "groups_for": groups_for,
        "groups": group,
        "fix": args.fixes_of(fix),
        "skip": skip,
        "solver": {"method": solver, "gap": gap, "time_limit": time_limit},
        "goal": goal,
        "max_drop": max_drop,
        "refine": refine,
        "monotone": "clamp" if clamp else "keep",
        "verify": not no_verify,
        "seed": seed,
        "execution": {"cpus": cpus, "memory": memory, "time_limit": job_time},
        "label": label,
    }
    with _client(server, api_key) as client:
        with _upload_bar() as on_upload:
            job = client.submit(
                model, data, idempotency_key=idempotency_key, on_upload=on_upload, **fields
            )
        show(_escaped(f"submitted {job.id} to {client.server}"))
        if not (wait or gates or out is not None):
            _print_job(job, as_json=as_json)
            return
        _finish(client, _watched(client, job.id, timeout), out, as_json=as_json, gates=gates)


def jobs_command(
    status: Annotated[
        Status | None, typer.Option("--status", help="Only those.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="At most so many.", min=1)] = 20,
    server: ServerOption = None,
    api_key: KeyOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """List your jobs, newest first."""
    with _client(server, api_key) as client:
        found = list(client.jobs(status=status, limit=limit))
    if as_json:
        from pydantic import TypeAdapter

        from mpsearch.schemas.jobs import Job

        sys.stdout.buffer.write(TypeAdapter(list[Job]).dump_json(found, indent=1) + b"\n")
        return
    _show_jobs(found)


def watch_command(
    job: JobArgument,
    timeout: TimeoutOption = None,
    server: ServerOption = None,
    api_key: KeyOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every event as a line of JSON on stdout.")
    ] = False,
) -> None:
    """Follow a job to its end, through restarts of the service.

    Exit code 0 when it succeeded; 2, 3 or 4 as the search itself would have exited.
    """
    with _client(server, api_key) as client:
        ended = _watched(client, job, timeout, _print_event if as_json else None)
    _raise_failure(ended)


def cancel_command(
    job: JobArgument,
    server: ServerOption = None,
    api_key: KeyOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """End a job that has not ended."""
    with _client(server, api_key) as client:
        found = client.cancel(job)
    show(_escaped(f"{found.id} is {found.status}"))
    if as_json:
        print_document(found)


def result_command(
    job: JobArgument,
    fail_if: args.FailIfOption = [],  # noqa: B006
    out: FolderOption = None,
    server: ServerOption = None,
    api_key: KeyOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """Show the result of a job that succeeded, and download its files with --out."""
    gates = _gates(fail_if)
    _check_folder(out)
    with _client(server, api_key) as client:
        found = client.job(job)
        if found.ended:
            _raise_failure(found)
        _finish(client, found, out, as_json=as_json, gates=gates)


@contextmanager
def _client(server: str | None, api_key: str | None) -> Iterator[Client]:
    from mpsearch.client import Client, Retries

    # Somebody sits in front of it: a service that is not there is told of soon.
    with Client(server, api_key=api_key, retries=Retries(contact=5.0)) as client:
        yield client


@contextmanager
def _upload_bar() -> Iterator[OnUpload]:
    """Show a bar as soon as there is an upload, and nothing where there is none."""
    from contextlib import ExitStack

    from mpsearch.client.progress import upload_bar

    with ExitStack() as stack:
        shown: list[OnUpload] = []

        def on_upload(sent: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(upload_bar()))
            shown[0](sent, total)

        yield on_upload


def _watched(
    client: Client,
    job: str,
    timeout: float | None,
    on_event: Callable[[Event], None] | None = None,
) -> Job:
    try:
        return client.wait(job, timeout=timeout, on_event=on_event, progress=True)
    except KeyboardInterrupt:
        follow = f"`mpsearch watch {job}` follows it, `mpsearch cancel {job}` ends it"
        show(_escaped(f"{job} goes on; {follow}"))
        raise


def _finish(
    client: Client, job: Job, out: Path | None, *, as_json: bool, gates: list[Gate]
) -> None:
    """Show what a job produced, fetch its files, and check the gates last."""
    from mpsearch.gates import check_gates
    from mpsearch.report.tables import allocation_report

    if out is not None and job.ended:
        # A failed job has its log to tell.
        written = client.download_all(job, out)
        names = ", ".join(path.name for path in written) or "nothing"
        show(_escaped(f"wrote {names} to {out}"))
    if job.ended:
        _raise_failure(job)
    answer: Allocation = client.result(job)
    show(allocation_report(answer, client.profile(job), client.costs(job)))
    if as_json:
        print_document(answer)
    check_gates(gates, answer)


def _gates(texts: list[str], *, verified: bool = True) -> list[Gate]:
    if not texts:
        return []
    from mpsearch.gates import parse_gate

    return [parse_gate(text, verified=verified) for text in texts]


def _raise_failure(job: Job) -> None:
    if job.status != "succeeded":
        from mpsearch.client.errors import job_error

        failure = job_error(job, job.failure)
        if job.failure is not None and job.failure.log_tail:
            show(f"[dim]last lines of its log:\n{_escaped(job.failure.log_tail)}[/dim]")
        raise failure


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text.rstrip())


def _check_folder(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")


def _print_job(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_document(job)
    else:
        sys.stdout.write(job.id + "\n")


def _print_event(event: Event) -> None:
    sys.stdout.write(event.model_dump_json(exclude_none=True) + "\n")
    sys.stdout.flush()


def _show_jobs(found: list[Job]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("id", "status", "stage", "model", "data", "budget", "created", "label"):
        table.add_column(column, no_wrap=column == "id")
    for job in found:
        request = job.request
        budget: dict[str, Any] = dict(request.budget) or {"goal": request.goal}
        stage = f"{job.stage} {job.progress:.0%}" if job.stage and not job.ended else ""
        table.add_row(
            job.id,
            f"[{_COLOURS.get(job.status, 'default')}]{job.status}",
            stage,
            _escaped(request.model),
            _escaped(request.data),
            _escaped(", ".join(f"{name}={amount}" for name, amount in budget.items())),
            f"{job.created.astimezone():%Y-%m-%d %H:%M:%S}",
            _escaped(request.label),
        )
    show(table if found else "no jobs")
