"""Loading what the command line names: model, data, and the groups a target asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpsearch.menu import Wishes

if TYPE_CHECKING:
    from mpsearch.models.dataset import DataSet
    from mpsearch.models.named import NamedModel

__all__ = ["Loaded", "load"]


@dataclass(frozen=True)
class Loaded:
    """A model with data that fits it.

    Attributes:
        model: The model.
        data: The data.
        wishes: What holds for particular layers, with the groups of the target.
    """

    model: NamedModel
    data: DataSet
    wishes: Wishes


def load(
    model: str,
    data: str,
    wishes: Wishes | None = None,
    *,
    groups_for: str | None = None,
    target: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    trusted: bool = False,
) -> Loaded:
    """Load what the command line names, and run one input through the model.

    Args:
        model: Model spec.
        data: Data spec.
        wishes: What the caller wants for particular layers.
        groups_for: Name of the target whose groups are proposed.
        target: Name of the export target; what it has no words for stays float, and what it fuses
            goes together.
        samples: Draw so many of the calibration inputs.
        seed: Seed of the draw, and of synthetic data.
        trusted: Whether the caller vouches for a `.pt2` archive.

    Returns:
        Model, data and wishes.
    """
    from mpsearch.export.wishes import for_target
    from mpsearch.models.groups import propose_groups
    from mpsearch.models.registry import as_data, as_model, check_fit
    from mpsearch.models.specs import LOCAL

    policy = replace(LOCAL, trusted=trusted)
    named = as_model(model, policy)
    dataset = as_data(data, policy, model=named, samples=samples, seed=seed)
    check_fit(named, dataset)
    proposed: Sequence[Sequence[str]] = ()
    if groups_for is not None:
        proposed = propose_groups(named.module, next(dataset.batches()), groups_for)
    found = replace(wishes or Wishes(), proposed=proposed)
    if target is not None:
        found = for_target(target, named.module, next(dataset.batches()), found)
    return Loaded(named, dataset, found)
