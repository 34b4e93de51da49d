"""Names that submissions may use, with those that only code with torch knows."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import mpsearch
from mpsearch.errors import DependencyError, InputError, UnknownNameError
from mpsearch.schemas.document import write_atomically
from mpsearch_api import logs

__all__ = ["Catalogue", "Description", "SettingInfo"]

SECONDS = 120.0
_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (type(None),),
}


class SettingInfo(BaseModel):
    """A setting of an estimator."""

    model_config = ConfigDict(frozen=True)

    types: list[Literal["bool", "int", "float", "str", "None"]] = Field(
        description="JSON types that are taken"
    )
    values: list[bool | int | float | str] | None = Field(
        default=None, description="where only some texts or numbers are taken: those"
    )
    default: bool | int | float | str | None = None

    def refusal(self, value: object) -> str | None:
        """Say why a value does not fit.

        Args:
            value: A JSON scalar.

        Returns:
            A clause, or None.
        """
        fits = [
            kind
            for kind in self.types
            if isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
        ]
        if not fits:
            return f"must be {' or '.join(self.types) or 'left out'}, not {value!r}"
        of_listed = [
            kind for kind in fits if any(isinstance(v, _TYPES[kind]) for v in self.values or ())
        ]
        if self.values is not None and of_listed == fits and value not in self.values:
            return f"must be one of {', '.join(map(str, self.values))}, not {value!r}"
        return None


@dataclass(frozen=True)
class Description:
    """What a process with torch told; see `mpsearch_api.describing`.

    Attributes:
        architectures: Names of bundled models.
        torchvision: Networks of torchvision; empty where it is not installed.
        data: Names that data specs begin with.
        losses: Names of losses.
        settings: Estimator -> its settings.
    """

    architectures: tuple[str, ...]
    torchvision: tuple[str, ...]
    data: tuple[str, ...]
    losses: tuple[str, ...]
    settings: Mapping[str, Mapping[str, SettingInfo]]

    @classmethod
    def parse(cls, text: str | bytes) -> Description:
        """Read what the describing process wrote.

        Args:
            text: JSON.

        Returns:
            The description.
        """
        found: dict[str, Any] = json.loads(text)
        settings = {
            estimator: {name: SettingInfo(**info) for name, info in given.items()}
            for estimator, given in found.pop("settings").items()
        }
        return cls(**{name: tuple(names) for name, names in found.items()}, settings=settings)

    def check_architecture(self, name: str) -> None:
        """Refuse an architecture that cannot be built.

        Args:
            name: A bundled model, or `torchvision:NAME`.

        Raises:
            UnknownNameError: There is none of this name.
        """
        prefix, colon, rest = name.partition(":")
        if colon and prefix == "torchvision":
            if rest not in self.torchvision:
                raise UnknownNameError("torchvision network", rest, self.torchvision)
            return
        if name not in self.architectures:
            hint = "Or torchvision:NAME, or the id of an uploaded model"
            raise UnknownNameError("model", name, self.architectures, hint=hint)

    def check_settings(self, estimator: str, given: Mapping[str, object]) -> None:
        """Refuse settings that an estimator does not have.

        Args:
            estimator: Its name.
            given: Name -> value.

        Raises:
            UnknownNameError: It has no such setting.
            InputError: A value is of another type.
        """
        known = self.settings.get(estimator, {})
        for name, value in given.items():
            if name not in known:
                raise UnknownNameError(f"setting of estimator {estimator}", name, known)
            refusal = known[name].refusal(value)
            if refusal is not None:
                raise InputError(f"estimator {estimator}: setting {name} {refusal}")


class Catalogue:
    """The description, once the process that makes it has ended."""

    def __init__(self, known: Description | None = None, *, kept: Path | None = None) -> None:
        """Begin without a description, or with one made earlier.

        Args:
            known: The description.
            kept: File that keeps it, so that a restarted server takes submissions at once.
        """
        self._known = known
        self._kept = kept
        self._task: asyncio.Task[Description] | None = None
        self._log = logs.get("catalogue")

    def start(self) -> None:
        """Begin to make the description, unless it is there."""
        if self._known is None:
            self._known = self._read()
        if self._known is None and (self._task is None or self._failed()):
            self._task = asyncio.create_task(self._made())

    async def stop(self) -> None:
        """End the process that makes the description."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def get(self) -> Description:
        """Wait for the description.

        Returns:
            The description.
        """
        self.start()
        if self._known is None:
            assert self._task is not None
            self._known = await asyncio.shield(self._task)
        return self._known

    async def _made(self) -> Description:
        text = await _described()
        if self._kept is not None:
            kept = {"versions": _versions(), "description": json.loads(text)}
            await asyncio.to_thread(write_atomically, self._kept, json.dumps(kept).encode())
        return Description.parse(text)

    def _read(self) -> Description | None:
        """Read what an earlier server kept, if it ran the same code."""
        if self._kept is None or not self._kept.exists():
            return None
        try:
            kept = json.loads(self._kept.read_bytes())
            if kept["versions"] == _versions():
                return Description.parse(json.dumps(kept["description"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log.warning("catalogue is made anew", path=str(self._kept), reason=str(error))
        return None

    def reason(self) -> str | None:
        """Say what is in the way of checking submissions, or None."""
        if self._known is not None or self._task is None or not self._task.done():
            return None
        error = None if self._task.cancelled() else self._task.exception()
        return str(error) if error else None

    def _failed(self) -> bool:
        assert self._task is not None
        return self._task.done() and (self._task.cancelled() or bool(self._task.exception()))


def _versions() -> dict[str, object]:
    """Tell what the description depends on: packages, and the sources they were read from."""
    found: dict[str, object] = {"python": sys.version}
    for name in ("mpsearch", "torch", "torchvision"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    sources = Path(mpsearch.__file__).parent.rglob("*.py")
    found["changed"] = max(path.stat().st_mtime for path in sources)
    return found


async def _described() -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "mpsearch_api.describing",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise DependencyError(
            f"models and estimators cannot be listed: {last[0][:400]}; "
            "the server needs the torch extra beside the api extra"
        )
    return output
