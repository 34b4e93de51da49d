"""Uploaded files and what they stand for: models, data sets and cost tables of the service."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from mpsearch.schemas.document import Record

__all__ = ["HardwareEntry", "Stored", "StoredKind", "Upload"]

StoredKind = Literal["model", "dataset", "hardware"]


class Upload(Record):
    """A file on its way in: bytes may be sent in parts and go on after an interruption."""

    id: str
    size: int = Field(ge=0, description="bytes announced")
    offset: int = Field(ge=0, description="bytes received and kept")
    sha256: str | None = Field(
        default=None, description="announced or, once complete, computed; hex"
    )
    complete: bool = False
    created: datetime


class Stored(Record):
    """An uploaded model, data set or cost table; jobs name it by its id."""

    id: str
    kind: StoredKind
    name: str = Field(description="file name given by the uploader; only a label")
    format: str = Field(description="safetensors, onnx, pt2, npz, json, yaml or csv")
    architecture: str | None = Field(
        default=None, description="for weights: what they belong to, such as torchvision:resnet18"
    )
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(description="of the content, in hex")
    created: datetime


class HardwareEntry(Record):
    """Something a job may name as its hardware."""

    name: str = Field(description="what a job's `hardware` says: a device's name, or an id")
    origin: Literal["shipped", "uploaded"]
    summary: str = ""
    resources: dict[str, str] = Field(default_factory=dict, description="priced -> unit")
    stored: Stored | None = Field(default=None, description="of an uploaded one")
