"""Profiles and prices of earlier jobs of the same tenant, by the content they depend on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from mpsearch.errors import DocumentError
from mpsearch.menu import Wishes
from mpsearch.models.dataset import DataSet
from mpsearch.models.fingerprint import model_fingerprint
from mpsearch.models.named import NamedModel
from mpsearch.schemas import Costs, Profile
from mpsearch.schemas.document import Document
from mpsearch.schemas.jobs import JobRequest
from mpsearch.sensitivity.content import content_key

__all__ = ["Content", "DocumentCache"]

AnyDocument = TypeVar("AnyDocument", bound=Document)


@dataclass(frozen=True)
class Content:
    """What profile and prices of a job depend on.

    Attributes:
        named: The model.
        data: The data, drawn already.
        request: What was asked for.
        wishes: What holds for particular layers.
    """

    named: NamedModel
    data: DataSet
    request: JobRequest
    wishes: Wishes

    def _common(self) -> dict[str, Any]:
        wishes = self.wishes
        return {
            "package": version("mpsearch"),
            "model": model_fingerprint(self.named.module),
            # Equal weights do not make equal models: the code or the graph may differ.
            "code": f"{type(self.named.module).__qualname__}\n{self.named.module}",
            "name": self.named.name,
            "data": self.data.fingerprint,
            "data_name": self.data.name,
            "batch_size": self.data.batch_size,
            "options": list(self.request.options),
            "group": list(wishes.group),
            "fix": dict(wishes.fix or {}),
            "skip": list(wishes.skip),
            "proposed": [list(members) for members in wishes.proposed],
        }

    def profile_key(self) -> str:
        """Name the profile.

        Returns:
            sha256 in hex.
        """
        request = self.request
        return content_key(
            kind="profile",
            estimator=request.estimator,
            settings=request.settings,
            loss=request.loss,
            seed=request.seed,
            device="cuda" if request.execution.gpus else "cpu",
            **self._common(),
        )

    def costs_key(self, hardware: str | None, resources: Sequence[str] | None) -> str:
        """Name the prices.

        Args:
            hardware: Content of the device or cost table, as JSON.
            resources: What is priced.

        Returns:
            sha256 in hex.
        """
        return content_key(
            kind="costs",
            hardware=hardware,
            resources=None if resources is None else list(resources),
            batch=self.request.batch,
            context=self.request.context,
            **self._common(),
        )


class DocumentCache:
    """Documents in a folder of one tenant; a broken one is as good as none."""

    def __init__(self, folder: Path) -> None:
        """Look into a folder.

        Args:
            folder: The tenant's.
        """
        self._folder = folder

    def load(self, kind: type[AnyDocument], key: str) -> AnyDocument | None:
        """Find a document.

        Args:
            kind: Its type.
            key: Its name.

        Returns:
            The document, or None.
        """
        path = self._path(kind, key)
        try:
            found = kind.load(path)
        except DocumentError:
            return None
        with contextlib.suppress(OSError):  # pruned this moment
            os.utime(path)
        return found

    def save(self, document: Profile | Costs, key: str) -> None:
        """Keep a document.

        Args:
            document: What to keep.
            key: Its name.
        """
        document.save(self._path(type(document), key))

    def _path(self, kind: type[Document], key: str) -> Path:
        return self._folder / "documents" / f"{kind.__name__.lower()}-{key}.json"
