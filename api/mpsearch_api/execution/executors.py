"""The executor that the settings name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpsearch_api.execution.ray.checking import check_ray
from mpsearch_api.settings import Settings

if TYPE_CHECKING:
    from mpsearch_api.execution.local import Program
    from mpsearch_api.execution.port import Executor

__all__ = ["check_executor", "make_executor"]


def check_executor(settings: Settings) -> None:
    """Say what keeps the executor from ever running here; asks no cluster.

    Args:
        settings: Of the service.

    Raises:
        DependencyError: Its package is not installed.
        InputError: Its settings are incomplete, or would leave it open to everyone.
    """
    if settings.executor == "ray":
        check_ray(settings.ray_address, os.environ)


def make_executor(settings: Settings, program: Program | None = None) -> Executor:
    """Make the executor that the settings name.

    Args:
        settings: Of the service.
        program: What jobs run, instead of searches.

    Returns:
        The executor.

    Raises:
        DependencyError: This kind is not there.
        InputError: Its settings are incomplete, or would leave it open to everyone.
    """
    from mpsearch_api.execution.assigning import limits_of
    from mpsearch_api.execution.local import LocalExecutor

    check_executor(settings)
    if settings.executor == "ray":
        from mpsearch_api.execution.ray.executor import RayExecutor

        return RayExecutor(settings, program)
    return LocalExecutor(
        lambda assignment: limits_of(assignment, settings),
        program,
        downloads=settings.hub_downloads,
    )
