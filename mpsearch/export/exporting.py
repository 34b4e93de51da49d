"""Writing an allocation for a target, and reading it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsearch.errors import DocumentError, InputError
from mpsearch.export.catalog import find_target
from mpsearch.export.checking import check_expressible
from mpsearch.export.protocol import Exported, Request, Target
from mpsearch.formats import parse_option
from mpsearch.schemas import Allocation
from mpsearch.schemas.document import write_atomically

if TYPE_CHECKING:
    from mpsearch.models.registry import ModelLike

__all__ = ["Rendered", "export", "read", "render"]

AllocationLike = Allocation | Mapping[str, str] | str | Path


@dataclass(frozen=True)
class Rendered:
    """An export that is one text, for those who do not want a file.

    Attributes:
        target: Name of the target.
        name: What to call the file.
        media_type: Its media type.
        content: The bytes.
        notes: Where the target's own rules differ from what was searched and verified.
    """

    target: str
    name: str
    media_type: str
    content: bytes
    notes: tuple[str, ...] = ()


def render(allocation: AllocationLike, to: str) -> Rendered:
    """Write an allocation in a target's language, without model or file.

    Args:
        allocation: An allocation, a saved one, or layer -> option.
        to: Name of a target that needs no model.

    Returns:
        The text, with its name and type.

    Raises:
        InputError: The target needs the model, or cannot express the allocation.
    """
    target = find_target(to)
    if target.needs_model:
        raise InputError(
            f"an export to {target.name} holds the model's weights: use mpsearch.export.export("
            "…, model=…, data=…), or mpsearch export --model M --data D"
        )
    request = _request(allocation)
    check_expressible(target, request.layers)
    return _rendered(target, request)


def export(
    allocation: AllocationLike,
    to: str,
    out: str | Path,
    *,
    model: ModelLike | None = None,
    data: Any = None,  # noqa: ANN401 - whatever mpsearch.profile takes
) -> Exported:
    """Write an allocation for another tool.

    Args:
        allocation: An allocation, a saved one, or layer -> option.
        to: Name of the target (see `mpsearch.export.known_targets`).
        out: File to write, or folder where the target's exports are one.
        model: The float model; needed where the export holds its weights, and used elsewhere to
            check that the target has words for the layers' kinds.
        data: Inputs of the model, in any form `mpsearch.profile` takes; needed with a model.

    Returns:
        What was written, with notes on where the target's own rules differ.

    Raises:
        InputError: The target cannot express the allocation: the message names layers, options and
            the nearest that it can; or it needs model and data, and they are missing.
    """
    target = find_target(to)
    request = _request(allocation)
    check_expressible(target, request.layers)
    path = Path(out)
    if target.needs_model and (model is None or data is None):
        raise InputError(
            f"an export to {target.name} holds the model's weights: give the model and data "
            "(--model and --data)"
        )
    if target.folder and path.exists() and not path.is_dir():
        raise InputError(f"{out} is a file; an export to {target.name} is a folder")
    if not target.folder and path.is_dir():
        raise InputError(f"{out} is a folder; an export to {target.name} is a file")
    if model is not None and data is not None:
        request = _with_model(target, request, model, data)
    if not target.needs_model:
        write_atomically(path, _rendered(target, request).content)
        return Exported(target.name, path, (path.name,), _notes(target, request))
    sizes = target.rewriter().write(request, path)
    files = (
        tuple(sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()))
        if target.folder
        else (path.name,)
    )
    return Exported(target.name, path, files, _notes(target, request), sizes)


def read(path: str | Path, to: str) -> dict[str, str]:
    """Read back the allocation that an export holds.

    Args:
        path: The file or folder that `export` wrote.
        to: Name of the target.

    Returns:
        Layer -> option.

    Raises:
        DocumentError: The file cannot be read, or is not of the target's language.
    """
    target = find_target(to)
    try:
        if target.needs_model:
            return target.rewriter().read(Path(path))
        return target.writer().parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DocumentError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DocumentError(f"{path} is no export to {target.name}: {reason}") from error


def _request(allocation: AllocationLike) -> Request:
    if isinstance(allocation, (str, Path)):
        allocation = Allocation.load(allocation)
    layers = allocation.layers if isinstance(allocation, Allocation) else dict(allocation)
    if not layers:
        raise InputError("the allocation names no layer: there is nothing to export")
    known = allocation if isinstance(allocation, Allocation) else None
    name = known.model.name if known and known.model else "allocation"
    return Request({layer: parse_option(text) for layer, text in layers.items()}, known, name)


def _rendered(target: Target, request: Request) -> Rendered:
    text = target.writer().render(request)
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in request.name)
    return Rendered(
        target.name,
        f"{stem}.{target.name}{target.suffix}",
        target.media_type,
        text.encode(),
        _notes(target, request),
    )


def _with_model(target: Target, request: Request, model: ModelLike, data: object) -> Request:
    from mpsearch.models.fingerprint import check_model
    from mpsearch.models.layers import find_layers
    from mpsearch.models.registry import as_data, as_model, check_fit

    named = as_model(model)
    dataset = as_data(data, model=named)  # type: ignore[arg-type]
    check_fit(named, dataset)
    if request.allocation is not None:
        check_model(named, request.allocation.model, "allocation")
    kinds = {
        name: layer.kind
        for layer in find_layers(named.module, next(dataset.batches())).layers
        for name in (layer.name, *layer.tied)
    }
    check_expressible(target, request.layers, kinds)
    return replace(request, module=named.module, data=dataset, name=named.name)


def _notes(target: Target, request: Request) -> tuple[str, ...]:
    quantizes = any(not o.activation.is_float for o in request.layers.values())
    return tuple(note for note in target.notes if quantizes or "activations" not in note)
