"""What every target is: an entry that says what it can express, and a writer imported on use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from mpsearch.export.language import Pair, nearest
from mpsearch.formats import Option

if TYPE_CHECKING:
    from torch import nn

    from mpsearch.models.dataset import DataSet
    from mpsearch.schemas import Allocation

__all__ = ["Exported", "Request", "Rewriter", "Target", "Writer"]


@dataclass(frozen=True)
class Request:
    """What is to be exported.

    Attributes:
        layers: Layer -> option.
        allocation: The allocation, with its ranges; None where only layers were given.
        name: What to call it in the file.
        module: The float model; None for targets that need none.
        data: Inputs of the model; None for targets that need none.
    """

    layers: Mapping[str, Option]
    allocation: Allocation | None = None
    name: str = "allocation"
    module: nn.Module | None = None
    data: DataSet | None = None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        target: Name of the target.
        path: The file or folder.
        files: Every file, relative to the folder; the file itself where it is one.
        notes: Where the target's own rules differ from what was searched and verified.
        sizes: Bytes of parts that a target reports, such as `weights` and `fixed`.
    """

    target: str
    path: Path
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


class Writer(Protocol):
    """A module that writes one target's language as text."""

    def render(self, request: Request) -> str:
        """Write an allocation down.

        Args:
            request: Layers and options, all expressible.

        Returns:
            The text of the file.
        """

    def parse(self, text: str) -> dict[str, str]:
        """Read an allocation back.

        Args:
            text: What `render` wrote.

        Returns:
            Layer -> option.
        """


class Rewriter(Protocol):
    """A module that writes the model itself in a target's form."""

    def write(self, request: Request, path: Path) -> dict[str, int]:
        """Write the model.

        Args:
            request: Layers and options, model and data.
            path: File or folder to write.

        Returns:
            Bytes of the parts worth telling apart.
        """

    def read(self, path: Path) -> dict[str, str]:
        """Read the allocation back from what was written.

        Args:
            path: File or folder.

        Returns:
            Layer -> option.
        """


@dataclass(frozen=True)
class Target:
    """A tool, and what its language can say of a layer.

    Attributes:
        name: Its name.
        title: What it is, for people.
        writes: What an export is.
        needs: What has to be installed to use an export.
        module: Where the writer is.
        pairs: Formats that go together; an option in none of them cannot be expressed. None: any
            option can, it is written down by name.
        offers: Options that it can express, as a menu for a search.
        kinds: Kinds of layers that it has words for; None: all.
        fused: Last parts of the names of layers that it joins, which need one option.
        needs_model: Whether an export holds the model's weights, so that model and data are needed.
        folder: Whether an export is a folder.
        suffix: Usual ending of the file's name.
        media_type: Of the file, over HTTP.
        cannot: What it cannot express, for people.
        notes: Where its own rules differ from what mpsearch verifies.
        requires: Packages that writing needs, beyond the base install.
    """

    name: str
    title: str
    writes: str
    needs: tuple[str, ...]
    module: str
    pairs: tuple[Pair, ...] | None
    offers: tuple[str, ...]
    kinds: frozenset[str] | None = None
    fused: tuple[tuple[str, ...], ...] = ()
    needs_model: bool = False
    folder: bool = False
    suffix: str = ".json"
    media_type: str = "application/json"
    cannot: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    def expresses(self, option: Option) -> bool:
        """Say whether an option can be expressed, whatever the layer.

        Args:
            option: The option.

        Returns:
            Whether some pair of formats covers it.
        """
        return self.pairs is None or any(pair.covers(option) for pair in self.pairs)

    def nearest(self, option: Option) -> list[str]:
        """Name what comes closest to an option.

        Args:
            option: What cannot be expressed.

        Returns:
            Up to three options that can.
        """
        return nearest(option, self.offers)

    def writer(self) -> Writer:
        """Import the writer of a target whose exports are text."""
        return cast("Writer", importlib.import_module(self.module))

    def rewriter(self) -> Rewriter:
        """Import the writer of a target whose exports hold the model."""
        return cast("Rewriter", importlib.import_module(self.module))
