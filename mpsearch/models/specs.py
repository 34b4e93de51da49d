"""Model specs: one string, the same in library, command line and service, that names a model.

```text
NAME[@WEIGHTS.safetensors]              an architecture registered with @architecture
SCHEME:BODY[@WEIGHTS.safetensors]       such as torchvision:resnet50, transformers:FOLDER
FILE.onnx                               converted (see onnx_models)
FILE.pt2                                a torch.export archive; only where trusted (see exported)
package.module:factory                  the caller's own code; only where that is allowed
```

Wherever a file or folder may stand, `upload:NAME` stands for one that whoever calls `load_spec` put
into `SpecPolicy.files`, such as `torchvision:resnet18@upload:mine.safetensors` or
`upload:net.onnx`: a service lets its callers name what they stored without naming a path.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mpsearch.errors import InputError, ModelError, UnknownNameError
from mpsearch.models.named import InputForm, NamedModel
from mpsearch.models.run_limits import DEFAULT_RUN_LIMITS, RunLimits
from mpsearch.models.spec_registry import SpecRegistry
from mpsearch.models.weights_file import load_weights

__all__ = [
    "DOWNLOADS_VARIABLE",
    "LOCAL",
    "UPLOAD",
    "ModelSpec",
    "SpecPolicy",
    "architecture",
    "file_type",
    "from_factory",
    "known_architectures",
    "load_spec",
    "scheme",
]


@dataclass(frozen=True)
class SpecPolicy:
    """What a spec may do. Everything is refused unless allowed, which is what a service wants.

    Attributes:
        allow_code: Whether `package.module:factory` may import and run the caller's own code.
        allow_paths: Whether a spec may name files and folders.
        trusted: Whether the caller vouches for `.pt2` archives, whose graph is a program.
        allow_downloads: Whether `transformers:ORGANIZATION/NAME` may be fetched from the hub.
        limits: What one input may cost when a model runs whose graph came out of a file.
        files: Name -> file or folder that `upload:NAME` stands for. The name's suffix says what
            the file is; the path may have any. Such files need no `allow_paths`.
    """

    allow_code: bool = False
    allow_paths: bool = False
    trusted: bool = False
    allow_downloads: bool = False
    limits: RunLimits = DEFAULT_RUN_LIMITS
    files: Mapping[str, Path] = field(default_factory=dict)

    def path(self, text: str) -> Path:
        """Turn the text of a spec into a path.

        Args:
            text: The text.

        Returns:
            The path.

        Raises:
            InputError: Paths are not allowed here.
            UnknownNameError: No file of this name was handed in.
        """
        prefix, colon, name = text.partition(":")
        if colon and prefix == UPLOAD:
            if name not in self.files:
                raise UnknownNameError("uploaded file", name, self.files)
            return self.files[name]
        if not self.allow_paths:
            raise InputError(f"{text!r} names a file or folder, which is not allowed here")
        return Path(text).expanduser()

    @contextmanager
    def paths_unsaid(self) -> Iterator[None]:
        """Context in which errors call uploaded files by their names instead of their paths.

        Yields:
            Nothing.

        Raises:
            InputError: As inside, with the paths of `files` replaced.
        """
        try:
            yield
        except InputError as error:
            said = str(error)
            # The longest first: a file's path may begin with a folder's.
            for name, path in sorted(self.files.items(), key=lambda item: -len(str(item[1]))):
                said = said.replace(str(path), f"{UPLOAD}:{name}")
            if said != str(error):
                error.args = (said,)
            raise


UPLOAD = "upload"
"""What stands before the colon of a file that the caller of `load_spec` handed in."""

DOWNLOADS_VARIABLE = "MPSEARCH_ALLOW_DOWNLOADS"
"""Environment variable by which the user of library or command line allows downloads: 1."""

LOCAL = SpecPolicy(
    allow_code=True,
    allow_paths=True,
    allow_downloads=os.environ.get(DOWNLOADS_VARIABLE) == "1",
)
"""What the library and the command line allow: the caller's own files and code."""

Maker = Callable[[], nn.Module]


@dataclass(frozen=True)
class ModelSpec:
    """A spec taken apart.

    Attributes:
        text: The spec as written.
        scheme: What comes before the colon, or "".
        body: What the scheme, or the registry of architectures, is asked for.
        weights: The `.safetensors` file after `@`, or None.
    """

    text: str
    scheme: str
    body: str
    weights: str | None

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Take a spec apart.

        Args:
            text: The spec.

        Returns:
            Its parts.

        Raises:
            InputError: Nothing stands before `@`, or what follows is no `.safetensors` file.
        """
        if _LOADERS.of_file(text):
            return cls(text, "", text, None)  # a path may have any character in it
        body, at, weights = text.partition("@")
        if at and not (body and weights.lower().endswith(".safetensors")):
            raise InputError(
                f"model {text!r}: write NAME@WEIGHTS.safetensors; other formats of weights may "
                "run code when they are read and are refused"
            )
        prefix, colon, rest = body.partition(":")
        known = bool(colon) and _LOADERS.of_scheme(prefix) is not None
        return cls(text, prefix if known else "", rest if known else body, weights or None)


Loader = Callable[[ModelSpec, SpecPolicy], NamedModel]

_ARCHITECTURES: dict[str, tuple[Maker, InputForm | None]] = {}
_LOADERS: SpecRegistry[Loader] = SpecRegistry()
scheme = _LOADERS.scheme
file_type = _LOADERS.file_type


def architecture(name: str, inputs: InputForm | None = None) -> Callable[[Maker], Maker]:
    """Register a function that builds a model under a name, as a decorator.

    Args:
        name: The name; `NAME` and `NAME@WEIGHTS.safetensors` are specs from then on.
        inputs: What the model takes.

    Returns:
        The decorator; it returns the function as it was.

    Raises:
        InputError: The name is taken, or could not be told from other specs.
    """
    if not name or any(each in name for each in ":@/\\") or _LOADERS.of_file(name):
        raise InputError(f"architecture {name!r}: a name has no ':', '@' or path in it")
    if name in _ARCHITECTURES:
        raise InputError(f"an architecture named {name!r} is registered already")

    def register(maker: Maker) -> Maker:
        _ARCHITECTURES[name] = (maker, inputs)
        return maker

    return register


def known_architectures() -> list[str]:
    """List the registered architectures and the forms that other specs take.

    Returns:
        The names, then the forms.
    """
    forms = [f"{prefix}:…" for prefix in _LOADERS.schemes]
    files = [f"FILE{suffix}" for suffix in _LOADERS.file_types]
    return [*sorted(_ARCHITECTURES), *forms, *files]


def load_spec(text: str, policy: SpecPolicy = LOCAL) -> NamedModel:
    """Make the model that a spec names.

    Args:
        text: The spec.
        policy: What it may do.

    Returns:
        The model in evaluation mode, called by its spec.

    """
    with policy.paths_unsaid():
        return _loaded(ModelSpec.parse(text), policy)


def _loaded(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    text = spec.text
    loader = _LOADERS.of_scheme(spec.scheme) if spec.scheme else _LOADERS.of_file(spec.body)
    if loader is not None:
        named = loader(spec, policy)
    elif spec.body in _ARCHITECTURES:
        maker, inputs = _ARCHITECTURES[spec.body]
        module = maker()
        if spec.weights is not None:
            load_weights(module, policy.path(spec.weights))
        named = NamedModel(text, module, inputs)
    elif ":" in spec.body:
        made = from_factory(text, policy)
        if not isinstance(made, nn.Module):
            raise ModelError(f"{text} made a {type(made).__name__}, not a torch.nn.Module")
        return NamedModel(text, made)  # in the mode that its maker left it in
    else:
        hint = "package.module:factory calls a function of yours" if policy.allow_code else ""
        raise UnknownNameError("model", text, known_architectures(), hint=hint)
    named.module.eval()
    return named


def from_factory(text: str, policy: SpecPolicy) -> Any:  # noqa: ANN401
    """Import and call `package.module:factory`; this runs the caller's own code.

    Args:
        text: The spec.
        policy: Has to allow code.

    Returns:
        What the function returned.

    Raises:
        InputError: Code is not allowed, or the factory cannot be imported.
    """
    if not policy.allow_code:
        raise InputError(f"{text!r} would run code of its author, which is not allowed here")
    path, _, name = text.partition(":")
    # Like `python -m`: the user's code is found from the folder they stand in.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"cannot import {name!r} from {path!r} for {text!r}: {error}") from error
    if not callable(factory):
        raise InputError(f"{text} is a {type(factory).__name__}, not a function that makes one")
    return factory()
