"""The HTML report: complete, and inert whatever names are in it."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.report.page import report_page
from mpsearch.schemas import Costs, Profile

HOSTILE = ['<script>alert("x")</script>', "'><img src=x onerror=alert(1)>", "a&b", "</td></table>"]


class _Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _answer(groups: list[str]) -> tuple[mp.Allocation, Profile, Costs]:
    loss = np.array([[0.5, 0.1]] * len(groups))
    profile = Profile.from_arrays(loss, groups=groups, options=["w4a8", "w8a8"])
    costs = Costs(
        groups=groups,
        options=["w4a8", "w8a8"],
        values={"weight_memory": np.array([[4.0, 8.0]] * len(groups))},
        units={"weight_memory": "B"},
        baseline={"weight_memory": 32.0 * len(groups)},
        provenance={"weight_memory": HOSTILE[0]},
    )
    return mp.allocate(profile, costs, {"weight_memory": 6.0 * len(groups)}), profile, costs


def _check_inert(page: str) -> _Page:
    found = _Page(page)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in {"src", "href"}:
            assert value is not None
            assert value.startswith("data:image/png;base64,")
    return found


def test_hostile_names_are_text() -> None:
    answer, profile, costs = _answer(HOSTILE)
    curve = mp.frontier(profile, costs, "weight_memory")
    warned = answer.model_copy(update={"warnings": [HOSTILE[1]], "solver": HOSTILE[0]})
    page = report_page(
        warned, profile, costs, curve, pictures={HOSTILE[1]: b"png"}, title=HOSTILE[0]
    )
    text = "".join(_check_inert(page).text)
    for name in HOSTILE:
        assert name in text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4, unique=True))
def test_every_name_comes_back_as_text(names: list[str]) -> None:
    clean = [name for name in names if name.isprintable() and name == " ".join(name.split())]
    if not clean:
        return
    answer, profile, costs = _answer(clean)
    text = "".join(_check_inert(report_page(answer, profile, costs)).text)
    for name in clean:
        assert name in text


def test_the_page_says_what_was_not_measured_and_what_was_proven() -> None:
    answer, profile, costs = _answer(["a", "b"])
    page = report_page(answer, profile, costs)
    assert "Nothing was verified" in page
    assert f'<span class="proven">{answer.status}</span>' in page
    assert "12 B" in page  # the limit
    weaker = answer.model_copy(update={"status": "feasible", "bound": None, "gap": None})
    page = report_page(weaker)
    assert '<span class="open">feasible</span>' in page
    assert "no lower bound" in page
    assert "proven" not in page.partition("</style>")[2]


def test_a_long_frontier_is_thinned_and_says_so() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in range(120)]
    price = np.sort(rng.uniform(1, 100, (120, 4)), axis=1)
    loss = -np.sort(-rng.uniform(0, 1, (120, 4)), axis=1)
    options = ["w2a8", "w4a8", "w6a8", "w8a8"]
    profile = Profile.from_arrays(loss, groups=groups, options=options)
    costs = Costs(
        groups=groups,
        options=options,
        values={"weight_memory": price},
        units={"weight_memory": "B"},
    )
    curve = mp.frontier(profile, costs, "weight_memory")
    assert len(curve.points) > 200
    answer = mp.allocate(profile, costs, {"weight_memory": "50%"})
    page = report_page(answer, curve=curve)
    rows = page.partition("Frontier of")[2].count("<tr")
    assert 100 < rows <= 202
    assert f"of {len(curve.points)} points)" in page


def test_measurements_are_shown_beside_the_baselines(digits_profile, digits_costs) -> None:
    answer = mp.allocate(digits_profile, digits_costs, {"weight_memory": "0.12x"})
    verified = mp.verify(
        "digits-resnet", "digits", answer, profile=digits_profile, costs=digits_costs
    )
    found = answer.model_copy(update={"verification": verified})
    page = report_page(found, digits_profile, digits_costs)
    _check_inert(page)
    assert "held out" in page
    assert f"{verified.allocation.metric:.2%}" in page
    for baseline in verified.baselines:
        assert f"<td>{baseline.name}</td>" in page
    assert digits_profile.model.fingerprint[:16] in page
