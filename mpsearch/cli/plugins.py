"""Commands of other packages, found by the entry-point group `mpsearch.commands`."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from mpsearch.errors import DependencyError

__all__ = ["GROUP", "CommandsWithPlugins"]

GROUP = "mpsearch.commands"


class CommandsWithPlugins(TyperGroup):
    """A group of commands to which installed packages add; looked for only when needed.

    An entry point names a `typer.Typer`. Its module is imported for `--help` and when the command
    runs, so it should import what is heavy inside its functions.
    """

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=GROUP)}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 (typer's or click's)
        """Name the commands.

        Args:
            ctx: Of the command line.

        Returns:
            Own commands first.
        """
        own = list(super().list_commands(ctx))
        return own + sorted(set(self._plugins) - set(own))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 (typer's or click's)
        """Find a command; own commands do not look for plug-ins.

        Args:
            ctx: Of the command line.
            cmd_name: Its name.

        Returns:
            The command, or None.
        """
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in self._plugins:
            found = _loaded(self._plugins[cmd_name])
            self.add_command(found, cmd_name)
        return found


def _loaded(entry: EntryPoint) -> Any:  # noqa: ANN401 (typer's or click's)
    try:
        made = entry.load()
    except ImportError as error:
        raise DependencyError(
            f"the command {entry.name} ({entry.value}) cannot be loaded: {error}; install what is "
            "missing, or the package that brings it again"
        ) from error
    command = typer.main.get_command(made)
    command.name = entry.name
    return command
