from __future__ import annotations

import numpy as np
import pytest

from mpsearch.errors import InputError
from mpsearch.menu import Wishes, make_menu, parse_options

LAYERS = ["conv1", "layer1.q", "layer1.k", "layer1.v", "fc"]


def test_every_layer_is_its_own_group_and_is_offered_everything() -> None:
    menu = make_menu(LAYERS, ["w4a8", "w8a8"], Wishes())
    assert list(menu.groups) == LAYERS
    assert menu.members == {}
    assert menu.mask is None
    assert menu.names == ["w4a8", "w8a8"]


def test_a_group_stands_where_its_first_layer_runs() -> None:
    menu = make_menu(LAYERS, ["w4"], Wishes(group=["re:layer1\\.[qk]"]))
    assert list(menu.groups) == ["conv1", "re:layer1\\.[qk]", "layer1.v", "fc"]
    assert menu.members == {"re:layer1\\.[qk]": ["layer1.q", "layer1.k"]}


def test_fixing_adds_the_option_for_that_layer_alone() -> None:
    menu = make_menu(LAYERS, ["w4", "w8"], Wishes(fix={"fc": "float", "conv1": "w8"}))
    assert menu.names == ["w4", "w8", "float"]
    assert menu.allowed.tolist() == [
        [False, True, False],
        [True, True, False],
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


def test_fixing_recognises_another_spelling_of_an_offered_option() -> None:
    menu = make_menu(LAYERS, ["w4", "w8"], Wishes(fix={"fc": "w:int8/a:float"}))
    assert menu.names == ["w4", "w8"]
    assert menu.allowed[-1].tolist() == [False, True]


def test_skipped_layers_leave_the_problem() -> None:
    menu = make_menu(LAYERS, ["w4"], Wishes(skip=["layer1.*"]))
    assert list(menu.groups) == ["conv1", "fc"]
    assert menu.skipped == ["layer1.q", "layer1.k", "layer1.v"]


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Wishes(group=["nothing"]), "matches no layer"),
        (Wishes(skip=["re:("]), "no regular expression"),
        (Wishes(skip=["*"]), "nothing is left"),
        (Wishes(group=["layer1.*", "layer1.q"]), "two groups"),
        (Wishes(fix={"fc": "w4", "f*": "w8"}), "fixed to both"),
        (Wishes(group=["layer1.*"], fix={"*.q": "w4", "*.k": "w8"}), "fixed differently"),
    ],
)
def test_contradictory_wishes_are_refused(wishes: Wishes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_menu(LAYERS, ["w4", "w8"], wishes)


@pytest.mark.parametrize("options", [[], "w4a8"])
def test_a_menu_must_be_a_list_with_something_in_it(options: list[str]) -> None:
    with pytest.raises(InputError, match="list of names"):
        parse_options(options)


def test_two_spellings_of_one_option_are_refused() -> None:
    with pytest.raises(InputError, match="the same"):
        parse_options(["w4a8", "w:int4/a:int8"])


def test_the_mask_has_an_option_for_every_group() -> None:
    menu = make_menu(LAYERS, ["w4", "w8"], Wishes(fix={"layer1.*": "w6"}))
    assert np.all(menu.allowed.any(axis=1))


QKV = ["layer1.q", "layer1.k", "layer1.v"]


def test_a_proposed_group_is_called_by_its_first_layer_and_how_many_go_with_it() -> None:
    menu = make_menu(LAYERS, ["w4"], Wishes(proposed=[QKV]))
    assert menu.groups == {"conv1": ["conv1"], "layer1.q+2": QKV, "fc": ["fc"]}


@pytest.mark.parametrize(
    ("wishes", "groups"),
    [
        (Wishes(fix={"*.k": "w4"}, proposed=[QKV]), [["layer1.q", "layer1.v"], ["layer1.k"]]),
        (Wishes(skip=["*.k"], proposed=[QKV]), [["layer1.q", "layer1.v"]]),
        (
            Wishes(group=["re:conv1|layer1.k"], proposed=[QKV]),
            [["conv1", "layer1.k"], ["layer1.q", "layer1.v"]],
        ),
        (Wishes(skip=["*.k", "*.v"], proposed=[QKV]), [["layer1.q"]]),
        (Wishes(group=["*.k", "*.v"], proposed=[QKV]), [["layer1.q"], ["layer1.k"]]),
    ],
)
def test_what_the_caller_says_of_a_layer_takes_it_out_of_its_proposed_group(
    wishes: Wishes, groups: list[list[str]]
) -> None:
    found = list(make_menu(LAYERS, ["w4", "w8"], wishes).groups.values())
    assert all(each in found for each in groups)
    assert QKV not in found
