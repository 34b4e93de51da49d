"""Whole profiles by content: what was scored once is not scored again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.errors import DocumentError
from mpsearch.losses import Loss
from mpsearch.menu import Wishes
from mpsearch.models.dataset import DataSet
from mpsearch.models.named import NamedModel
from mpsearch.schemas import Profile
from mpsearch.sensitivity.content import content_key, measured_content

__all__ = ["ProfileCache", "profile_cache"]


@dataclass(frozen=True)
class ProfileCache:
    """The place of one profile.

    Attributes:
        file: Where it is kept, or None where nothing is.
    """

    file: Path | None

    def load(self) -> Profile | None:
        """Find the profile.

        Returns:
            The profile, or None; also None, with a warning, where the file cannot be read: what is
            kept here can be scored again.
        """
        if self.file is None or not self.file.exists():
            return None
        try:
            return Profile.load(self.file)
        except DocumentError as error:
            warnings.warn(f"scored again, since {error}", RuntimeWarning, stacklevel=2)
            return None

    def keep(self, profile: Profile) -> Profile:
        """Keep the profile for the next run.

        Args:
            profile: What was scored.

        Returns:
            The same profile.
        """
        if self.file is not None:
            profile.save(self.file)
        return profile


def profile_cache(
    folder: str | Path | None,
    named: NamedModel,
    data: DataSet,
    loss: Loss,
    estimator: object,
    settings: Mapping[str, Any],
    options: Sequence[str],
    wishes: Wishes,
    seed: int,
) -> ProfileCache:
    """Name a profile by everything that it depends on.

    Args:
        folder: Where profiles are kept; None: nowhere.
        named: The model: its weights, its code as far as it prints itself, its device.
        data: Calibration data.
        loss: The loss.
        estimator: Its name; profiles of estimators that are no names are not kept, because what
            they depend on is not known.
        settings: Settings of the estimator.
        options: Names of the options.
        wishes: Layers to group, fix or skip.
        seed: Seed of everything random.

    Returns:
        The place of the profile.
    """
    if folder is None or not isinstance(estimator, str):
        return ProfileCache(None)
    key = content_key(
        **measured_content(named.module, data, loss),
        names=[named.name, data.name],
        estimator=estimator,
        settings=dict(settings),
        options=list(options),
        wishes=repr(wishes),
        seed=seed,
    )
    return ProfileCache(Path(folder) / "profiles" / f"{key}.json")
