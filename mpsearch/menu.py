"""Who is offered what: options read, layers grouped, options fixed, layers skipped."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError
from mpsearch.formats import Option, parse_option

__all__ = ["Menu", "Wishes", "make_menu", "parse_options"]


@dataclass(frozen=True)
class Wishes:
    """What the caller wants to hold for particular layers.

    A pattern is a shell wildcard over layer names (`layer1.*`), or a regular expression after
    `re:` that must match the whole name.

    Attributes:
        group: Patterns; the layers that one pattern matches take the same option.
        fix: Pattern -> the only option that its layers are offered.
        skip: Patterns of layers that stay in float and are not part of the problem.
        proposed: Layers that a target makes share an option, by name (see
            `mpsearch.models.groups`). A layer that any pattern above names is taken out of its
            proposed group first: what the caller says of it wins.
    """

    group: Sequence[str] = ()
    fix: Mapping[str, str] | None = None
    skip: Sequence[str] = ()
    proposed: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Menu:
    """The groups of a model and the options each is offered.

    Attributes:
        groups: Group -> its layers, in execution order of the first layer.
        options: All options that any group is offered.
        allowed: Bool mask, groups x options.
        skipped: Layers that stay in float.
    """

    groups: dict[str, list[str]]
    options: list[Option]
    allowed: NDArray[np.bool_]
    skipped: list[str]

    @property
    def names(self) -> list[str]:
        """Names of the options."""
        return [option.name for option in self.options]

    @property
    def members(self) -> dict[str, list[str]]:
        """Layers of the groups that are more than one layer of the same name."""
        return {name: layers for name, layers in self.groups.items() if layers != [name]}

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """The mask, or None when every group is offered everything."""
        return None if self.allowed.all() else self.allowed


def parse_options(options: Sequence[str]) -> list[Option]:
    """Read the options on offer.

    Args:
        options: Their names.

    Returns:
        The options, in the order given.

    Raises:
        InputError: There is none, or two are the same.
    """
    if isinstance(options, str) or not options:
        raise InputError(f"options must be a list of names such as w4a8, not {options!r}")
    found: dict[object, Option] = {}
    for option in map(parse_option, options):
        if option.key in found:
            raise InputError(f"options {found[option.key].name} and {option.name} are the same")
        found[option.key] = option
    return list(found.values())


def make_menu(layers: Sequence[str], options: Sequence[str], wishes: Wishes) -> Menu:
    """Form the groups and decide what each is offered.

    Args:
        layers: Names of the quantizable layers, in execution order.
        options: Names of the options offered to every layer that is not fixed.
        wishes: What should hold for particular layers.

    Returns:
        The menu.

    Raises:
        InputError: A pattern matches no layer or is no regular expression, a layer is in two
            groups, tied layers are fixed differently, or nothing is left to allocate.
    """
    offered = parse_options(options)
    skipped = {name for pattern in wishes.skip for name in _matching(pattern, layers, "skip")}
    rest = [name for name in layers if name not in skipped]
    if not rest:
        raise InputError("every layer is skipped: nothing is left to allocate")
    groups = _groups(rest, wishes.group, _unclaimed(rest, wishes))
    fixed = _fixed(rest, groups, wishes.fix or {})
    columns = {option.key: option for option in offered}
    for option in fixed.values():
        columns.setdefault(option.key, option)
    everything = list(columns.values())
    common = np.arange(len(everything)) < len(offered)
    allowed = np.tile(common, (len(groups), 1))
    for row, name in enumerate(groups):
        if name in fixed:
            allowed[row] = [option.key == fixed[name].key for option in everything]
    return Menu(groups, everything, allowed, [name for name in layers if name in skipped])


def _matching(pattern: str, layers: Sequence[str], wish: str) -> list[str]:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(f"--{wish} {pattern!r} is no regular expression: {error}") from error
        found = [name for name in layers if expression.fullmatch(name)]
    else:
        found = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        shown = ", ".join(layers[:8]) + (", …" if len(layers) > 8 else "")
        raise InputError(f"--{wish} {pattern!r} matches no layer; layers are: {shown}")
    return found


def _unclaimed(layers: Sequence[str], wishes: Wishes) -> list[list[str]]:
    """Give the proposed groups without the layers that the caller's own patterns name."""
    claimed = {name for pattern in wishes.fix or {} for name in _matching(pattern, layers, "fix")}
    left = set(layers) - claimed
    groups = [[name for name in members if name in left] for members in wishes.proposed]
    return [members for members in groups if len(members) > 1]


def _groups(
    layers: Sequence[str], patterns: Sequence[str], proposed: Sequence[Sequence[str]]
) -> dict[str, list[str]]:
    group_of: dict[str, str] = {}
    for pattern in patterns:
        for name in _matching(pattern, layers, "group"):
            if name in group_of:
                raise InputError(
                    f"layer {name} is in two groups: --group {group_of[name]!r} and {pattern!r}"
                )
            group_of[name] = pattern
    for members in proposed:
        free = [name for name in members if name not in group_of]
        for name in free if len(free) > 1 else ():
            group_of[name] = f"{free[0]}+{len(free) - 1}"
    groups: dict[str, list[str]] = {}
    for name in layers:
        groups.setdefault(group_of.get(name, name), []).append(name)
    return groups


def _fixed(
    layers: Sequence[str], groups: Mapping[str, list[str]], fix: Mapping[str, str]
) -> dict[str, Option]:
    by_layer: dict[str, Option] = {}
    for pattern, text in fix.items():
        option = parse_option(text)
        for name in _matching(pattern, layers, "fix"):
            if by_layer.get(name, option).key != option.key:
                raise InputError(
                    f"layer {name} is fixed to both {by_layer[name].name} and {option.name}"
                )
            by_layer[name] = option
    fixed = {}
    for group, members in groups.items():
        wanted = {by_layer[name].key: by_layer[name] for name in members if name in by_layer}
        if len(wanted) > 1:
            names = " and ".join(sorted(option.name for option in wanted.values()))
            raise InputError(f"the layers of group {group} are fixed differently: {names}")
        if wanted:
            fixed[group] = next(iter(wanted.values()))
    return fixed
