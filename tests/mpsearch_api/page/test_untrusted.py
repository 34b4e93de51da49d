"""What tenants name themselves is shown as text, and visitors count as who they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from nicegui import Client, ui
from nicegui.page import page
from starlette.requests import Request

from mpsearch.schemas import Frontier, FrontierPoint
from mpsearch.schemas.jobs import Failure
from mpsearch_api.page.answer import Answer
from mpsearch_api.page.job_page import _Live
from mpsearch_api.page.session import _address

HOSTILE = 'a" :title="alert(1)" innerHTML="<img src=x onerror=alert(2)>" b="'


def a_visitor(peer: tuple[str, int] | None, **headers: str) -> Client:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": raw, "client": peer}
    return Client(page("/anything"), request=Request(scope))


def points() -> list[FrontierPoint]:
    return [
        FrontierPoint(
            usage=usage, predicted_loss=1.0, bound=None, gap=None, status="feasible", groups={}
        )
        for usage in (1.0, 2.0)
    ]


def test_the_name_of_a_resource_never_becomes_a_property_of_the_page() -> None:
    with a_visitor(("127.0.0.1", 1)):
        answer = Answer.__new__(Answer)
        answer.frontier = Frontier(resource=HOSTILE, unit=HOSTILE, points=points())
        answer.shown = SimpleNamespace(costs={})
        answer.slider_place = ui.column()
        answer._slider()
    assert answer.slider.props["aria-label"] == f"Budget of {HOSTILE} in {HOSTILE}"
    assert not {":title", "innerHTML", "b"} & set(answer.slider.props)


def test_the_end_of_a_log_is_shown_as_text() -> None:
    said = "```\n<form action='https://elsewhere'><input name=key></form>\n"
    with a_visitor(("127.0.0.1", 1)) as visitor:
        live = _Live.__new__(_Live)
        live.job = SimpleNamespace(
            failure=Failure(kind="crashed", message=HOSTILE, log_tail=said, minimum={HOSTILE: 1.0})
        )
        live.failure = ui.column()
        live._explain()
        shown = list(visitor.elements.values())
    assert said in [each.text for each in shown if isinstance(each, ui.label)]
    assert not any("innerHTML" in each.props for each in shown)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("203.0.113.9", 4711), ("203.0.113.9", 4711)),
        (("127.0.0.1", 4711), ("127.0.0.1", 4711)),
        (None, ("", 0)),
    ],
)
def test_a_visitor_of_the_page_has_the_rights_of_their_own_address(
    peer: tuple[str, int] | None, address: tuple[str, int]
) -> None:
    assert _address(a_visitor(peer)) == address


def test_a_visitor_through_a_proxy_of_this_machine_is_not_of_this_machine() -> None:
    visitor = a_visitor(("127.0.0.1", 1), x_forwarded_for="203.0.113.9")
    assert _address(visitor) == ("", 0)
