"""A job request checked whole before it is queued, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpsearch.budgets import UNITS, parse_amount
from mpsearch.errors import BudgetError, InputError, UnknownNameError
from mpsearch.formats import parse_option
from mpsearch.hardware.device import device
from mpsearch.hardware.resources import known_resources, resource
from mpsearch.menu import parse_options
from mpsearch.schemas.jobs import JobRequest, ResolveRequest, SolverSettings
from mpsearch.schemas.uploads import Stored
from mpsearch.sensitivity import catalog
from mpsearch_api.execution.assigning import memory_of, scoring_memory_of
from mpsearch_api.faults import NotAllowedError
from mpsearch_api.http.catalogue import Description
from mpsearch_api.settings import Settings
from mpsearch_api.store.ids import is_id
from mpsearch_solvers import method_names

__all__ = ["FieldError", "Submitter", "check_job", "check_resolve"]

FindStored = Callable[[str], Stored | None]

# `mpsearch.hardware.pricing` has this name too, and imports torch.
ACTIVATION_MEMORY = "activation_memory"
MOST_EXPRESSIONS = 64
_UNIT_OF = {"latency": "s", "energy": "J", ACTIVATION_MEMORY: "B"}
_STANDING_DATA = {"images": "an uploaded .zip", "text": "an uploaded file"}


class FieldError(InputError):
    """An input error that says which member of the request it is about."""

    def __init__(self, pointer: str, message: str) -> None:
        """Keep the place beside the message.

        Args:
            pointer: JSON pointer, such as `#/budget/latency`.
            message: What a person should read.
        """
        super().__init__(message)
        self.pointer = pointer


class Submitter:
    """What the caller may name.

    Attributes:
        stored: Gives an uploaded object of this caller by its id, or None.
        trusted: Whether `.pt2` archives may be loaded.
    """

    def __init__(self, stored: FindStored, *, trusted: bool) -> None:
        self.stored = stored
        self.trusted = trusted


def check_job(
    request: JobRequest, known: Description, caller: Submitter, settings: Settings
) -> None:
    """Refuse a job that could not run, as far as can be told without loading the model.

    Args:
        request: The job.
        known: Names that need torch.
        caller: Who asks.
        settings: Limits of the service.

    Raises:
        UnknownNameError: A member of the request cannot be used; a `FieldError`, always.
    """
    with _at("#/model"):
        _check_model(request.model, known, caller, settings)
    with _at("#/data"):
        _check_data(request.data, known, caller)
    with _at("#/options"):
        parse_options(request.options)
    _check_expressions(request)
    for pattern, option in request.fix.items():
        with _at(f"#/fix/{_escaped(pattern)}"):
            _check_pattern(pattern)
            parse_option(option)
    for member, patterns in (("groups", request.groups), ("skip", request.skip)):
        for number, pattern in enumerate(patterns):
            with _at(f"#/{member}/{number}"):
                _check_pattern(pattern)
    with _at("#/estimator"):
        catalog.info(request.estimator)
    with _at("#/settings"):
        known.check_settings(request.estimator, request.settings)
    with _at("#/loss"):
        if request.loss is not None and request.loss not in known.losses:
            raise UnknownNameError("loss", request.loss, known.losses)
    with _at("#/hardware"):
        own = _resources_of(request.hardware, caller)
    _check_budget(request, own)
    _check_solver(request.solver)
    with _at("#/memory_limit"):
        scoring_memory_of(request)
    with _at("#/execution"):
        _check_execution(request, settings)


def check_resolve(request: ResolveRequest) -> None:
    """Refuse a re-solve whose budgets or method cannot be read.

    Args:
        request: The new budgets.

    """
    for name, amount in request.budget.items():
        with _at(f"#/budget/{_escaped(name)}"):
            parse_amount(name, amount)
    _check_solver(request.solver)


def _check_model(text: str, known: Description, caller: Submitter, settings: Settings) -> None:
    body, at, weights = text.partition("@")
    if at:
        known.check_architecture(body)
        stored = _of_kind(weights, "model", "mdl", caller)
        if stored.format != "safetensors":
            raise InputError(f"{weights} is {stored.format}; only safetensors are weights alone")
        return
    if is_id("mdl", text):
        _check_uploaded(_of_kind(text, "model", "mdl", caller), known, caller)
        return
    prefix, colon, _ = text.partition(":")
    if colon and prefix in {"transformers", "sentence-transformers"} and settings.hub_downloads:
        return
    if (colon and prefix != "torchvision") or _looks_like_path(text):
        raise InputError(
            f"{text!r} names a file, a hub or code, which is not allowed here; upload the model "
            "(POST /v1/models) and give its id, or name one of GET /v1/architectures"
        )
    known.check_architecture(text)


def _check_uploaded(stored: Stored, known: Description, caller: Submitter) -> None:
    if stored.format == "pt2" and not caller.trusted:
        raise NotAllowedError(
            f"{stored.id} is a torch.export archive, whose graph is a program; it needs a key "
            "with the scope `trusted`"
        )
    if stored.format == "safetensors":
        if stored.architecture is None:
            raise InputError(
                f"{stored.id} has weights alone; say what they belong to: ARCHITECTURE@{stored.id}"
            )
        known.check_architecture(stored.architecture)


def _check_data(text: str, known: Description, caller: Submitter) -> None:
    head = text.partition("?")[0]
    prefix, _, rest = head.partition(":")
    if is_id("dat", head):
        _of_kind(head, "dataset", "dat", caller)
    elif prefix in _STANDING_DATA and is_id("dat", rest):
        _of_kind(rest, "dataset", "dat", caller)
    elif ":" in head or _looks_like_path(head) or head in _STANDING_DATA:
        raise InputError(
            f"{text!r} names a file, a folder or code, which is not allowed here; upload the data "
            "(POST /v1/datasets) and give its id, or name `digits` or `synthetic`"
        )
    elif head not in known.data:
        allowed = [name for name in known.data if name not in _STANDING_DATA]
        raise UnknownNameError("data set", text, allowed, hint="Or the id of an uploaded one")


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith((".", "~")) or "." in text


def _of_kind(name: str, kind: str, prefix: str, caller: Submitter) -> Stored:
    found = caller.stored(name) if is_id(prefix, name) else None
    if found is None or found.kind != kind:
        raise InputError(f"there is no uploaded {kind} {name!r}")
    return found


def _resources_of(name: str | None, caller: Submitter) -> list[str] | None:
    """List what a device prices beside what needs none; None where only reading it would tell."""
    if name is None:
        return []
    if is_id("hw", name):
        _of_kind(name, "hardware", "hw", caller)
        return None
    return list(device(name).resources)


def _check_expressions(request: JobRequest) -> None:
    """Refuse more regular expressions than are compiled in a moment."""
    for member, patterns in (
        ("fix", list(request.fix)),
        ("groups", request.groups),
        ("skip", request.skip),
    ):
        count = sum(pattern.startswith("re:") for pattern in patterns)
        if count > MOST_EXPRESSIONS:
            raise FieldError(
                f"#/{member}",
                f"{count} regular expressions; at most {MOST_EXPRESSIONS} are taken, and names and "
                "patterns with * beside them",
            )


def _check_pattern(pattern: str) -> None:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(f"{pattern!r} is no regular expression: {error}") from error


def _check_budget(request: JobRequest, own: list[str] | None) -> None:
    computed = [*known_resources(), ACTIVATION_MEMORY]
    names = dict(request.budget)
    goal = request.goal
    with _at("#/goal"):
        if goal is not None:
            if not re.fullmatch(r"min:[A-Za-z_]\w*", goal):
                raise InputError(f"goal {goal!r}: write min:RESOURCE, such as min:weight_memory")
            _check_resource(goal[4:], computed, own)
    for name, amount in names.items():
        with _at(f"#/budget/{_escaped(name)}"):
            _check_resource(name, computed, own)
            _check_amount(name, amount)


def _check_resource(name: str, computed: list[str], own: list[str] | None) -> None:
    if own is None or name in computed or name in own:
        return
    hint = "" if own else "latency and energy need a `hardware` that prices them"
    raise UnknownNameError("resource", name, [*computed, *own], hint=hint)


def _check_amount(name: str, amount: str | float) -> None:
    found = parse_amount(name, amount)
    if found.kind != "absolute" or not found.unit:
        return
    base = _UNIT_OF.get(name)
    if base is None and name in known_resources():
        base = resource(name).unit
    spellings = UNITS.get(base or "")
    if spellings is not None and found.unit not in spellings:
        raise BudgetError(
            f"budget {name}={found.text}: {name} is counted in {base}, and {found.unit!r} is no "
            f"unit of it; write one of {', '.join(filter(None, spellings))}"
        )


def _check_solver(solver: SolverSettings) -> None:
    with _at("#/solver/method"):
        if solver.method not in {"auto", *method_names()}:
            raise UnknownNameError("method", solver.method, ["auto", *method_names()])
    with _at("#/solver/gap"):
        if not solver.gap < 1:
            raise InputError(f"gap {solver.gap!r} must be below 1")


def _check_execution(request: JobRequest, settings: Settings) -> None:
    memory_of(request, settings)
    if request.execution.time_limit > settings.worker_time:
        raise InputError(
            f"time_limit {request.execution.time_limit:g} s; at most {settings.worker_time:g} s"
        )


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


@contextmanager
def _at(pointer: str) -> Iterator[None]:
    try:
        yield
    except FieldError:
        raise
    except InputError as error:
        raise FieldError(pointer, str(error)) from error
