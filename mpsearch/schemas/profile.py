"""The profile: predicted loss increase of every group at every option."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, ValidationError, model_validator

from mpsearch.errors import DocumentError
from mpsearch.schemas.arrays import BoolMatrix, FloatMatrix
from mpsearch.schemas.document import Document, Record

__all__ = ["DataRecord", "InputRange", "ModelRecord", "Profile"]


class ModelRecord(Record):
    """Which model something belongs to."""

    name: str
    fingerprint: str = Field(description="sha256 over names, shapes, types and values of weights")


class DataRecord(Record):
    """Which data something was measured on."""

    name: str
    fingerprint: str = Field(description="sha256 over the calibration inputs and targets")
    inputs: int = Field(ge=0, description="number of inputs used")


class InputRange(Record):
    """What a format that clips or chooses its grid became for one layer's input."""

    format: str = Field(description="the grid: the format itself, or what an automatic one chose")
    low: float = Field(description="smallest value that is represented")
    high: float = Field(description="largest value that is represented")


class Profile(Document):
    """Predicted loss increase for every (group, option), with its standard errors and origin."""

    kind: Literal["profile"] = "profile"
    groups: list[str] = Field(min_length=1, description="names, in execution order")
    options: list[str] = Field(min_length=1, description="names such as w4a8, in menu order")
    loss: FloatMatrix = Field(description="groups x options, in units of the loss function")
    stderr: FloatMatrix = Field(description="standard error of `loss`; 0 without randomness")
    allowed: BoolMatrix | None = Field(
        default=None, description="which options each group is offered; null: all"
    )
    members: dict[str, list[str]] = Field(
        default_factory=dict, description="layers of each group; a group not named is one layer"
    )
    estimator: str = Field(description="name of the estimator, or `given` for numbers from outside")
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    statistics: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="per-layer figures behind the scores, by name and layer"
    )
    activation_ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="layer -> [low, high] of its input, calibrated on the data",
    )
    resolved_ranges: dict[str, dict[str, InputRange]] = Field(
        default_factory=dict,
        description="layer -> activation format that clips or chooses its grid -> what it became",
    )
    interactions: FloatMatrix | None = Field(
        default=None,
        description="extra loss of pairs of choices, (groups x options) squared in row order; "
        "symmetric, counted once per unordered pair; null: losses of groups just add up",
    )
    loss_function: str | None = None
    float_loss: float | None = Field(default=None, description="loss of the unquantized model")
    monotone: Literal["keep", "clamp"] = "keep"
    seed: int = 0
    model: ModelRecord | None = None
    data: DataRecord | None = None
    warnings: list[str] = Field(default_factory=list)
    seconds: float = 0.0

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        check_names("groups", self.groups)
        check_names("options", self.options)
        shape = (len(self.groups), len(self.options))
        offered = np.ones(shape, bool) if self.allowed is None else self.allowed
        if offered.shape != shape:
            raise ValueError(f"allowed has shape {offered.shape}, groups x options is {shape}")
        if not offered.any(axis=1).all():
            empty = self.groups[int(np.argmin(offered.any(axis=1)))]
            raise ValueError(f"group {empty!r} is offered no option")
        for name in ("loss", "stderr"):
            check_table(name, getattr(self, name), offered, self.groups, self.options)
        if (self.stderr[offered] < 0).any():
            raise ValueError("stderr has negative values")
        if self.interactions is not None:
            check_interactions(self.interactions, offered)
        return self

    def predicted(self, columns: Sequence[int]) -> float:
        """Predict the loss increase of an allocation, interactions included.

        Args:
            columns: Position of each group's option.

        Returns:
            The sum over groups, and over pairs of groups where the profile knows them.
        """
        rows = np.arange(len(self.groups))
        chosen = np.asarray(columns)
        total = list(self.loss[rows, chosen])
        if self.interactions is not None:
            cells = rows * len(self.options) + chosen
            total += list(np.triu(self.interactions[np.ix_(cells, cells)], 1).ravel())
        return math.fsum(total)

    @property
    def offered(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which options each group is offered: bool, groups x options."""
        if self.allowed is not None:
            return self.allowed
        return np.ones(self.loss.shape, bool)

    def layers_of(self, group: str) -> list[str]:
        """Name the layers that share a group's option.

        Args:
            group: A name from `groups`.

        Returns:
            Fully qualified layer names; the group's own name when it is a single layer.
        """
        return self.members.get(group, [group])

    @classmethod
    def from_arrays(
        cls,
        loss: ArrayLike,
        *,
        groups: Sequence[str] | None = None,
        options: Sequence[str] | None = None,
        stderr: ArrayLike | None = None,
        allowed: ArrayLike | None = None,
        members: Mapping[str, Sequence[str]] | None = None,
        estimator: str = "given",
    ) -> Self:
        """Build a profile from numbers that something else computed.

        Args:
            loss: Predicted loss increases, groups x options.
            groups: Group names; `g0`, `g1` … when left out.
            options: Option names; `o0`, `o1` … when left out.
            stderr: Standard errors of `loss`; zeros when left out.
            allowed: Bool mask of the options each group is offered; all when left out.
            members: Layers of each group.
            estimator: What to call the origin of the numbers.

        Returns:
            The profile; it belongs to no model, so it can be solved but not verified.

        Raises:
            DocumentError: Shapes disagree, names repeat, or an offered value is not finite.
        """
        table = np.asarray(loss, dtype=np.float64)
        if table.ndim != 2:
            raise DocumentError(f"loss must be groups x options, not of shape {table.shape}")
        try:
            return cls(
                groups=list(groups) if groups else [f"g{i}" for i in range(table.shape[0])],
                options=list(options) if options else [f"o{i}" for i in range(table.shape[1])],
                loss=table,
                stderr=np.zeros_like(table) if stderr is None else np.asarray(stderr),
                allowed=None if allowed is None else np.asarray(allowed),
                members={name: list(layers) for name, layers in (members or {}).items()},
                estimator=estimator,
            )
        except ValidationError as error:
            raise DocumentError(f"not a valid profile: {error.errors()[0]['msg']}") from error


def check_names(what: str, names: list[str]) -> None:
    """Refuse repeated or empty names.

    Args:
        what: "groups" or "options", for the message.
        names: The names.

    Raises:
        ValueError: A name is empty or occurs twice.
    """
    repeated = (
        sorted({name for name in names if names.count(name) > 1})
        if len(set(names)) != len(names)
        else []
    )
    if repeated or not all(names):
        raise ValueError(f"{what} has {'empty' if not repeated else 'repeated'} names {repeated}")


def check_interactions(
    table: np.ndarray[Any, np.dtype[np.float64]], offered: np.ndarray[Any, np.dtype[np.bool_]]
) -> None:
    """Refuse interactions of the wrong shape, not symmetric, or not finite.

    Args:
        table: Losses, (groups x options) squared.
        offered: Bool mask, groups x options.

    Raises:
        ValueError: What is wrong with them.
    """
    if table.shape != (offered.size, offered.size):
        raise ValueError(f"interactions have shape {table.shape}, not {(offered.size,) * 2}")
    if not np.isfinite(table).all() or not np.array_equal(table, table.T):
        raise ValueError("interactions must be finite and symmetric")


def check_table(
    name: str,
    table: np.ndarray[Any, np.dtype[np.float64]],
    offered: np.ndarray[Any, np.dtype[np.bool_]],
    groups: list[str],
    options: list[str],
) -> None:
    """Refuse a table of the wrong shape or with non-finite values where an option is offered.

    Args:
        name: Field name, for the message.
        table: Values, groups x options.
        offered: Bool mask, groups x options.
        groups: Row names.
        options: Column names.

    Raises:
        ValueError: The shape differs, or an offered cell is NaN or infinite.
    """
    if table.shape != offered.shape:
        raise ValueError(f"{name} has shape {table.shape}, groups x options is {offered.shape}")
    broken = offered & ~np.isfinite(table)
    if broken.any():
        row, column = np.argwhere(broken)[0]
        value = table[row, column]
        raise ValueError(f"{name}[{groups[row]!r}, {options[column]!r}] is {value}, not finite")
