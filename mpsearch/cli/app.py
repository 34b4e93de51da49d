"""The command `mpsearch`: its subcommands, and how errors become exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import typer

from mpsearch.cli.console import print_error
from mpsearch.cli.estimators import estimators_app
from mpsearch.cli.export import export_command
from mpsearch.cli.formats import formats_app
from mpsearch.cli.hardware import hardware_app
from mpsearch.cli.plugins import CommandsWithPlugins
from mpsearch.cli.search import search_command
from mpsearch.cli.service import (
    cancel_command,
    jobs_command,
    result_command,
    submit_command,
    watch_command,
)
from mpsearch.cli.solve import solve_command
from mpsearch.cli.stages import frontier_command, price_command, profile_command, verify_command
from mpsearch.errors import DependencyError, MpsearchError

__all__ = ["app", "main"]

app = typer.Typer(
    name="mpsearch",
    cls=CommandsWithPlugins,
    help="Which numeric format should every layer have? Proven and measured.\n\n"
    "Exit codes: 0 done; 2 bad usage or input; 3 infeasible; 4 a dependency failed or time ran "
    "out; 5 a --fail-if gate failed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("search")(search_command)
app.command("profile")(profile_command)
app.command("price")(price_command)
app.command("solve")(solve_command)
app.command("frontier")(frontier_command)
app.command("verify")(verify_command)
app.command("export")(export_command)
app.command("submit")(submit_command)
app.command("jobs")(jobs_command)
app.command("watch")(watch_command)
app.command("cancel")(cancel_command)
app.command("result")(result_command)
app.add_typer(estimators_app, name="estimators")
app.add_typer(formats_app, name="formats")
app.add_typer(hardware_app, name="hardware")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from mpsearch import __version__

        sys.stdout.write(f"mpsearch {__version__}\n")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: Command-line words; those of the process by default.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="mpsearch")
    except MpsearchError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # What reads or writes files names them; what is left is the output itself.
        if error.errno != errno.ENOSPC:
            raise
        print_error(f"the output could not be written: {error.strerror}")
        sys.exit(DependencyError.exit_code)
