"""`mpsearch serve` and `mpsearch keys`; what is heavy is imported when they run."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from mpsearch.cli.console import show
from mpsearch.errors import DependencyError, InputError

if TYPE_CHECKING:
    from mpsearch_api.store import Store
    from mpsearch_api.store.keys import KeyRecord

__all__ = ["keys_app", "serve_app"]

serve_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
keys_app = typer.Typer(
    help="Make, list and revoke the API keys of the service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Folder of the database, uploads and results [MPSEARCH_DATA_DIR; mpsearch-data].",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@contextmanager
def _with_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"mpsearch", "mpsearch_api", "mpsearch_solvers"}:
            raise  # a fault of ours, and no extra would mend it
        raise DependencyError(
            f"the service needs {error.name}, which is not installed; "
            "run: pip install 'mpsearch[api,torch]'"
        ) from error


def _settings_from(**given: object) -> dict[str, str]:
    """Put options where settings are read from, here and in the processes that are started."""
    chosen = {f"MPSEARCH_{name.upper()}": str(v) for name, v in given.items() if v is not None}
    os.environ.update(chosen)
    return chosen


@serve_app.command("serve")
def serve_command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback, keys are needed.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    data_dir: DataDir = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Jobs run at once [MPSEARCH_WORKERS; 1]; niced, so that answers stay quick.",
            show_default=False,
        ),
    ] = None,
    dispatch: Annotated[
        bool,
        typer.Option(
            "--dispatch/--no-dispatch",
            help="Run jobs here, or leave them to `python -m mpsearch_api.execution.dispatcher` "
            "elsewhere.",
        ),
    ] = True,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the web page at /.")] = True,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default=False)
    ] = None,
) -> None:
    """Run the job service on this machine: REST API, web page, and the jobs themselves.

    Everything is kept in one folder; jobs survive a restart. On 127.0.0.1 no key is needed until
    the first one is made (mpsearch keys create NAME); elsewhere keys are always needed. All other
    settings are variables MPSEARCH_…; docs/service.md lists them. Ctrl-C or SIGTERM ends it:
    running jobs go back into the queue.
    """
    with _with_extra():
        from mpsearch_api.serving import serve
        from mpsearch_api.settings import Settings

        _settings_from(data_dir=data_dir, workers=workers, log_level=log_level)
        serve(_checked(Settings), host, port, dispatch=dispatch, page=page)


def _checked(kind: Any) -> Any:  # noqa: ANN401
    """Read the settings, saying which variable is wrong."""
    from pydantic import ValidationError

    try:
        return kind()
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = "MPSEARCH_" + "_".join(map(str, fault["loc"])).upper()
        raise InputError(f"{name}={fault['input']!r}: {fault['msg']}") from error


@contextmanager
def _opened(data_dir: Path | None) -> Iterator[Store]:
    with _with_extra():
        from mpsearch_api.logs import configure_logs
        from mpsearch_api.settings import Settings
        from mpsearch_api.store import open_store

        _settings_from(data_dir=data_dir)
        settings = _checked(Settings)
        configure_logs(settings.model_copy(update={"log_level": "warning"}))
        store = open_store(settings)
        try:
            yield store
        finally:
            store.close()


@keys_app.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="A name for people, such as ci or alice-laptop.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            "-s",
            help="read, write (submit, upload, cancel), admin (see all tenants), trusted (load "
            ".pt2 archives); repeatable. Default: write.",
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Such as 90d, 12h, or 2030-01-31. Default: never.")
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            help="Share the objects of this tenant; `local` are those of open mode. Default: a "
            "tenant of its own."
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once, on stdout, and only its hash is kept.

    Send it as `Authorization: Bearer KEY`, or give it to the client as MPSEARCH_API_KEY. With the
    first key, open mode ends.
    """
    with _opened(data_dir) as store:
        record, token = store.keys.create(name, scope or ["write"], _end(expires), tenant=tenant)
    if as_json:
        sys.stdout.write(json.dumps({**_facts(record), "key": token}, indent=1) + "\n")
        return
    sys.stdout.write(token + "\n")
    show(Text(f"{record.id} ({', '.join(record.scopes)}); this key is not shown again."))


@keys_app.command("list")
def list_command(data_dir: DataDir = None, as_json: JsonOption = False) -> None:
    """List all keys, with scopes, tenants and ends; never the keys themselves."""
    with _opened(data_dir) as store:
        records = store.keys.list()
    if as_json:
        sys.stdout.write(json.dumps([_facts(record) for record in records], indent=1) + "\n")
        return
    table = Table("id", "name", "tenant", "scopes", "made", "ends", box=box.SIMPLE)
    for record in records:
        end = f"revoked {record.revoked:%Y-%m-%d}" if record.revoked else ""
        if not end:
            end = f"{record.expires:%Y-%m-%d %H:%M} UTC" if record.expires else "never"
        made = f"{record.created:%Y-%m-%d}"
        cells = (record.id, record.name, record.tenant, " ".join(record.scopes), made, end)
        table.add_row(*map(Text, cells))
    show(table if records else Text("no key was made yet: mpsearch keys create NAME"))


@keys_app.command("revoke")
def revoke_command(
    key: Annotated[str, typer.Argument(help="Id of the key, as `mpsearch keys list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """End a key now; requests with it are refused from the next one on."""
    with _opened(data_dir) as store:
        if not store.keys.revoke(key):
            raise InputError(f"there is no key {key!r} to revoke; see `mpsearch keys list`")
    show(Text(f"{key} is revoked"))


def _facts(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "scopes": list(record.scopes),
        "created": record.created.isoformat(),
        "expires": record.expires.isoformat() if record.expires else None,
        "revoked": record.revoked.isoformat() if record.revoked else None,
    }


def _end(text: str | None) -> datetime | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})([dh])", text)
    now = datetime.now(UTC)
    if match:
        amount = int(match[1])
        return now + (timedelta(days=amount) if match[2] == "d" else timedelta(hours=amount))
    try:
        end = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"--expires {text!r}: write 90d, 12h or a date such as 2030-01-31"
        ) from error
    return end if end.tzinfo else end.replace(tzinfo=UTC)
