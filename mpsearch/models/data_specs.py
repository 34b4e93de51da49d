"""Data specs: one string, the same in library, command line and service, that names data.

```text
digits                                          the bundled example
FILE.npz  FILE.safetensors                      arrays `inputs`, `targets`, `held_out_…`
images:FOLDER?size=224&mean=0.5&std=0.5         images, one sub-folder per class; also FILE.zip
text:FILE?tokenizer=FOLDER&length=128           lines or windows of tokens
synthetic?count=64&shape=3x32x32&steps=100      data-free: made from the model alone
package.module:factory                          the caller's own code; only where that is allowed
```

`upload:NAME` stands for a file or folder that was handed in, as in model specs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpsearch.errors import DataError, InputError, UnknownNameError
from mpsearch.models.dataset import DataSet
from mpsearch.models.named import NamedModel
from mpsearch.models.spec_registry import SpecRegistry
from mpsearch.models.specs import LOCAL, SpecPolicy, from_factory

__all__ = [
    "DataRequest",
    "data_file_type",
    "data_scheme",
    "known_data",
    "load_data_spec",
    "whole_number",
]


@dataclass(frozen=True)
class DataRequest:
    """A data spec taken apart, with what a loader may need beside it.

    Attributes:
        text: The spec as written.
        body: What stands after the scheme and before `?`; the whole path for files.
        settings: NAME=VALUE pairs after `?`.
        policy: What the spec may do.
        model: The model that the data is for, where that is known.
        seed: Seed of everything random.
    """

    text: str
    body: str
    settings: dict[str, str] = field(default_factory=dict)
    policy: SpecPolicy = LOCAL
    model: NamedModel | None = None
    seed: int = 0

    @property
    def path(self) -> Path:
        """The body as a path, where paths are allowed."""
        return self.policy.path(self.body)

    def check_settings(self, known: Collection[str]) -> None:
        """Refuse settings that the loader does not have.

        Args:
            known: Their names.

        Raises:
            UnknownNameError: Another one is set.
        """
        for name in self.settings:
            if name not in known:
                raise UnknownNameError(f"setting of data {self.text!r}", name, known)


DataLoader = Callable[[DataRequest], DataSet]

_LOADERS: SpecRegistry[DataLoader] = SpecRegistry()
data_scheme = _LOADERS.scheme
data_file_type = _LOADERS.file_type


def known_data() -> list[str]:
    """List the names and forms of data specs.

    Returns:
        The names, then the file types.
    """
    return [*_LOADERS.schemes, *(f"FILE{suffix}" for suffix in _LOADERS.file_types)]


def load_data_spec(
    text: str, policy: SpecPolicy = LOCAL, model: NamedModel | None = None, seed: int = 0
) -> Any:  # noqa: ANN401
    """Load the data that a spec names.

    Args:
        text: The spec.
        policy: What it may do.
        model: The model that the data is for; synthetic data is made from it.
        seed: Seed of everything random.

    Returns:
        A DataSet, or whatever the caller's own factory returned.
    """
    with policy.paths_unsaid():
        return _loaded(text, policy, model, seed)


def _loaded(text: str, policy: SpecPolicy, model: NamedModel | None, seed: int) -> Any:  # noqa: ANN401
    head, mark, query = text.partition("?")
    prefix, colon, rest = head.partition(":")
    of_scheme, of_file = _LOADERS.of_scheme(prefix), _LOADERS.of_file(head)
    loader = of_scheme or of_file
    if loader is not None:
        body = rest if of_scheme else head
        return loader(DataRequest(text, body, _settings(text, query), policy, model, seed))
    if colon and not mark:
        made = from_factory(text, policy)
        if isinstance(made, str):
            raise DataError(f"{text} made text, not data")
        return made
    hint = "package.module:factory calls a function of yours" if policy.allow_code else ""
    raise UnknownNameError("data set", text, known_data(), hint=hint)


def _settings(text: str, query: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InputError(f"data {text!r}: write NAME=VALUE after '?', not {pair!r}")
        if name in settings:
            raise InputError(f"data {text!r} sets {name} twice")
        settings[name] = value
    return settings


def whole_number(request: DataRequest, name: str, usual: int, largest: int) -> int:
    """Read a setting that is a positive whole number.

    Args:
        request: The spec.
        name: The setting.
        usual: Its value when it is not set.
        largest: The largest value that is accepted.

    Returns:
        The value.

    Raises:
        InputError: Not a number from 1 to the largest.
    """
    value = request.settings.get(name, str(usual))
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:18]) <= largest):
        raise InputError(f"data {request.text!r}: {name}={value} is not within 1 and {largest:,}")
    return int(value)
