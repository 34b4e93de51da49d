"""The JSON form of a problem: the file of `mpsearch solve` and the body of `POST /v1/solve`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from mpsearch_solvers.errors import ProblemError
from mpsearch_solvers.goal import Goal
from mpsearch_solvers.problem import (
    Bools,
    Floats,
    Interactions,
    PeakRows,
    Problem,
)
from mpsearch_solvers.validation import (
    check,
    read_goal,
    read_limits,
    read_number,
    reject_unknown,
)

VERSION = 1
_FIELDS = (
    "version",
    "groups",
    "limits",
    "fixed",
    "forbidden",
    "ties",
    "goal",
    "interactions",
    "rows",
)


def parse(document: object) -> Problem:
    """Read a problem document.

    Args:
        document: The parsed JSON.

    Returns:
        The checked problem.

    Raises:
        ProblemError: If anything in it is wrong; the message starts with the path of the value.
    """
    if not isinstance(document, Mapping):
        raise ProblemError("", f"a problem is an object, not {type(document).__name__}")
    for name in document:
        if name not in _FIELDS:
            reject_unknown(str(name), "field", name, _FIELDS)
    if document.get("version", VERSION) != VERSION or document.get("version") is True:
        raise ProblemError("version", f"is {document['version']!r}; this reads {VERSION}")
    for name in ("groups", "limits"):
        if name not in document:
            raise ProblemError(name, "is missing")
    groups = _list(document["groups"], "groups")
    if not groups:
        raise ProblemError("groups", "is empty; give at least one group")
    menus = _Menus(groups)
    peaks = {} if document.get("rows") is None else document["rows"]
    if not isinstance(peaks, Mapping):
        raise ProblemError("rows", f"is {peaks!r}; give an object of resource -> steps")
    goal = read_goal(document.get("goal"))
    limits = read_limits(document["limits"])
    problem = Problem(
        groups=tuple(menus.groups),
        options=tuple(menus.options),
        loss=menus.loss,
        allowed=menus.allowed,
        costs=menus.costs(frozenset(peaks)),
        peaks={str(name): _parse_peak(name, steps, menus) for name, steps in peaks.items()},
        limits=limits,
        fixed=_parse_fixed(document.get("fixed")),
        forbidden=_parse_forbidden(document.get("forbidden")),
        ties=_parse_ties(document.get("ties")),
        goal=goal,
        interactions=_parse_interactions(document.get("interactions"), menus),
    )
    check(problem)
    return problem


class _Menus:
    """The groups of a document, gathered in one pass so that 400,000 options load in seconds."""

    def __init__(self, documents: Sequence[object]) -> None:
        self.groups: list[str] = []
        self.options: list[tuple[str, ...]] = []
        losses: list[float] = []
        lengths: list[int] = []
        self._prices: dict[str, list[tuple[int, float]]] = {}
        known: dict[tuple[str, ...], tuple[str, ...]] = {}
        for position, group in enumerate(documents):
            menu = self._read_group(group, position, losses)
            # Most groups share one menu: one tuple for all of them saves 50,000 copies.
            self.options.append(known.setdefault(menu, menu))
            lengths.append(len(menu))
        width = max(lengths, default=0)
        self.allowed: Bools = np.arange(width) < np.asarray(lengths, dtype=np.intp)[:, None]
        self.loss: Floats = np.full(self.allowed.shape, np.inf)
        self.loss[self.allowed] = losses
        self.index = {name: position for position, name in enumerate(self.groups)}

    def _read_group(self, group: object, position: int, losses: list[float]) -> tuple[str, ...]:
        if not isinstance(group, Mapping):
            raise ProblemError(f"groups[{position}]", f"is {group!r}; give an object")
        name = group.get("name")
        if not isinstance(name, str):
            raise ProblemError(f"groups[{position}].name", f"is {name!r}; give a string")
        if len(group) != 2:
            for key in group:
                if key not in ("name", "options"):
                    reject_unknown(f"groups[{position}].{key}", "field", key, ("name", "options"))
        self.groups.append(name)
        options = group.get("options")
        if not isinstance(options, list | tuple) or not options:
            raise ProblemError(
                f"groups[{position}].options",
                f"is {options!r}; give a list of at least one option (group {name!r})",
            )
        menu = []
        for column, option in enumerate(options):
            try:
                menu.append(self._read_option(cast("Mapping[str, Any]", option), losses))
            except (KeyError, TypeError, AttributeError, OverflowError):
                exact = _read_carefully(option, f"groups[{position}].options[{column}]")
                menu.append(self._read_option(exact, losses))
        if len(set(menu)) != len(menu):
            twice = next(option for at, option in enumerate(menu) if option in menu[:at])
            raise ProblemError(
                f"groups[{position}].options[{len(menu) - 1 - menu[::-1].index(twice)}].name",
                f"{twice!r} is offered twice in group {name!r}",
            )
        return tuple(menu)

    def _read_option(self, option: Mapping[str, Any], losses: list[float]) -> str:
        name = option["name"]
        loss = option["loss"]
        if type(name) is not str or (type(loss) is not float and type(loss) is not int):
            raise TypeError
        costs = option.get("costs")
        if len(option) != 2 + (costs is not None):
            raise TypeError
        if costs:
            place = len(losses)
            for resource, cost in costs.items():
                if type(cost) is not float and type(cost) is not int:
                    raise TypeError
                prices = self._prices.get(resource)
                if prices is None:
                    prices = self._prices[resource] = []
                prices.append((place, float(cost)))
        losses.append(float(loss))
        return name

    def costs(self, peaks: frozenset[str]) -> dict[str, Floats]:
        """Return one table per resource; NaN where an option does not price it."""
        for resource in peaks & self._prices.keys():
            raise ProblemError(
                f"rows.{resource}", "is also a cost of options; a resource is one or the other"
            )
        tables = {}
        count = int(self.allowed.sum())
        for resource, prices in self._prices.items():
            if not isinstance(resource, str):
                raise ProblemError("costs", f"{resource!r} is not the name of a resource")
            flat = np.full(count, np.nan)
            places, values = zip(*prices, strict=True)
            flat[np.asarray(places, dtype=np.intp)] = values
            if not np.isfinite(np.asarray(values)).all():
                self._name_bad_cost(resource, prices)
            table = np.zeros(self.allowed.shape)
            table[self.allowed] = flat
            tables[resource] = table
        return tables

    def _name_bad_cost(self, resource: str, prices: list[tuple[int, float]]) -> None:
        place, value = next(pair for pair in prices if not math.isfinite(pair[1]))
        group, option = (int(axis[place]) for axis in np.nonzero(self.allowed))
        read_number(value, f"groups[{group}].options[{option}].costs.{resource}")

    def column(self, group: int, option: object, path: str) -> int:
        """Return the column of an option by name."""
        if option not in self.options[group]:
            kind = f"option of group {self.groups[group]!r}"
            reject_unknown(path, kind, option, self.options[group])
        return self.options[group].index(option)


def _read_carefully(option: object, path: str) -> dict[str, Any]:
    """Return one option with plain floats, or raise the error that says what is wrong with it."""
    # Slow, so it runs only on options that the fast path did not accept.
    if not isinstance(option, Mapping):
        raise ProblemError(path, f"is {option!r}; give an object")
    for key in option:
        if key not in ("name", "loss", "costs"):
            reject_unknown(f"{path}.{key}", "field", key, ("name", "loss", "costs"))
    name = option.get("name")
    if not isinstance(name, str):
        raise ProblemError(f"{path}.name", f"is {name!r}; give a string")
    if "loss" not in option:
        raise ProblemError(f"{path}.loss", "is missing")
    costs = option.get("costs", {})
    if not isinstance(costs, Mapping):
        raise ProblemError(f"{path}.costs", f"is {costs!r}; give an object of resource -> number")
    return {
        "name": str(name),
        "loss": read_number(option["loss"], f"{path}.loss"),
        "costs": {str(k): read_number(v, f"{path}.costs.{k}") for k, v in costs.items()},
    }


def _list(value: object, path: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ProblemError(path, f"is {value!r}; give a list")
    return value


def _name(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise ProblemError(path, f"holds {value!r}; give names as strings")
    return value


def _parse_peak(resource: str, document: object, menus: _Menus) -> PeakRows:
    steps = _list(document, f"rows.{resource}")
    if not steps:
        raise ProblemError(f"rows.{resource}", "is empty; give at least one step")
    cost = np.zeros((len(steps), *menus.loss.shape))
    base = np.zeros(len(steps))
    names = []
    for number, step in enumerate(steps):
        path = f"rows.{resource}[{number}]"
        if not isinstance(step, Mapping) or not isinstance(step.get("costs", {}), Mapping):
            raise ProblemError(path, "give an object with step, costs and optionally base")
        for key in step:
            if key not in ("step", "costs", "base"):
                reject_unknown(f"{path}.{key}", "field", key, ("step", "costs", "base"))
        names.append(str(step.get("step", number)))
        base[number] = read_number(step.get("base", 0.0), f"{path}.base")
        for group, prices in step.get("costs", {}).items():
            place = menus.index.get(group)
            if place is None:
                reject_unknown(f"{path}.costs.{group}", "group", group, menus.index)
            if not isinstance(prices, Mapping):
                raise ProblemError(f"{path}.costs.{group}", "give an object of option -> number")
            for option, value in prices.items():
                spot = f"{path}.costs.{group}.{option}"
                cost[number, place, menus.column(place, option, spot)] = read_number(value, spot)
    return PeakRows(steps=tuple(names), cost=cost, base=base)


def _parse_fixed(document: object) -> dict[str, str]:
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise ProblemError("fixed", f"is {document!r}; give an object of group -> option")
    for group, option in document.items():
        if not isinstance(option, str):
            raise ProblemError(f"fixed.{group}", f"is {option!r}; give the name of an option")
    return {str(group): option for group, option in document.items()}


def _parse_forbidden(document: object) -> tuple[tuple[str, str], ...]:
    pairs = []
    for position, pair in enumerate(_list([] if document is None else document, "forbidden")):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ProblemError(f"forbidden[{position}]", f"is {pair!r}; give [group, option]")
        group, option = (_name(part, f"forbidden[{position}]") for part in pair)
        pairs.append((group, option))
    return tuple(pairs)


def _parse_ties(document: object) -> tuple[tuple[str, ...], ...]:
    ties = []
    for position, tie in enumerate(_list([] if document is None else document, "ties")):
        path = f"ties[{position}]"
        ties.append(tuple(_name(member, path) for member in _list(tie, path)))
    return tuple(ties)


def _parse_interactions(document: object, menus: _Menus) -> Interactions | None:
    entries = _list([] if document is None else document, "interactions")
    if not entries:
        return None
    groups = np.zeros((len(entries), 2), dtype=np.intp)
    options = np.zeros((len(entries), 2), dtype=np.intp)
    loss = np.zeros(len(entries))
    for position, entry in enumerate(entries):
        path = f"interactions[{position}]"
        if not isinstance(entry, Mapping) or set(entry) != {"groups", "options", "loss"}:
            raise ProblemError(path, "give an object with groups, options and loss")
        for side, (names, choices) in enumerate(
            zip((entry["groups"],) * 2, (entry["options"],) * 2, strict=True)
        ):
            if len(_list(names, f"{path}.groups")) != 2 or len(_list(choices, path)) != 2:
                raise ProblemError(path, "names two groups and two options")
            place = menus.index.get(_name(names[side], f"{path}.groups[{side}]"))
            if place is None:
                reject_unknown(f"{path}.groups[{side}]", "group", names[side], menus.index)
            groups[position, side] = place
            options[position, side] = menus.column(place, choices[side], f"{path}.options[{side}]")
        loss[position] = read_number(entry["loss"], f"{path}.loss")
    return Interactions(groups=groups, options=options, loss=loss)


def write(problem: Problem) -> dict[str, Any]:
    """Return the document that :func:`parse` reads back as the same problem.

    Args:
        problem: The problem.

    Returns:
        The document; plain floats, strings, lists and dicts.
    """
    document: dict[str, Any] = {
        "version": VERSION,
        "groups": _write_groups(problem),
        "limits": {resource: limit.to_json() for resource, limit in problem.limits.items()},
    }
    if problem.peaks:
        document["rows"] = {
            resource: _write_peak(problem, peak) for resource, peak in problem.peaks.items()
        }
    if problem.fixed:
        document["fixed"] = dict(problem.fixed)
    if problem.forbidden:
        document["forbidden"] = [list(pair) for pair in problem.forbidden]
    if problem.ties:
        document["ties"] = [list(tie) for tie in problem.ties]
    if problem.goal != Goal():
        document["goal"] = problem.goal.to_dict()
    if problem.interactions is not None:
        document["interactions"] = _write_interactions(problem, problem.interactions)
    return document


def _write_groups(problem: Problem) -> list[dict[str, Any]]:
    losses = problem.loss.tolist()
    costs = {resource: table.tolist() for resource, table in problem.costs.items()}
    groups = []
    for position, (name, menu) in enumerate(zip(problem.groups, problem.options, strict=True)):
        options = []
        for column in np.flatnonzero(problem.allowed[position]).tolist():
            prices = {resource: table[position][column] for resource, table in costs.items()}
            priced = {resource: price for resource, price in prices.items() if price == price}
            options.append(
                {
                    "name": menu[column],
                    "loss": losses[position][column],
                    "costs": priced,
                }
            )
        groups.append({"name": name, "options": options})
    return groups


def _write_peak(problem: Problem, peak: PeakRows) -> list[dict[str, Any]]:
    steps = []
    for number, step in enumerate(peak.steps):
        costs: dict[str, dict[str, float]] = {}
        for group, column in np.argwhere(peak.cost[number] != 0.0).tolist():
            prices = costs.setdefault(problem.groups[group], {})
            prices[problem.options[group][column]] = float(peak.cost[number, group, column])
        steps.append({"step": step, "base": float(peak.base[number]), "costs": costs})
    return steps


def _write_interactions(problem: Problem, pairs: Interactions) -> list[dict[str, Any]]:
    entries = []
    for groups, options, loss in zip(
        pairs.groups.tolist(), pairs.options.tolist(), pairs.loss.tolist(), strict=True
    ):
        names = [problem.groups[group] for group in groups]
        chosen = [problem.options[g][o] for g, o in zip(groups, options, strict=True)]
        entries.append({"groups": names, "options": chosen, "loss": loss})
    return entries
