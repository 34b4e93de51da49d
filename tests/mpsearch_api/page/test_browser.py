"""The page as somebody uses it: a headless Chromium against `mpsearch serve`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from serving import SCREENSHOTS, free_port, is_ready, wait_until

from mpsearch.client import Client

pytestmark = pytest.mark.slow

TIMES = "return performance.getEntriesByType('resource').map(e => e.name)"
TRACES = """
const plot = document.querySelectorAll('.js-plotly-plot')[arguments[0]];
return plot && plot.data ? JSON.stringify(plot.data) : null
"""
NAMELESS = """
return [...document.querySelectorAll('button, input:not([type=file]), [role=slider]')]
  .filter(e => e.offsetParent && !(e.ariaLabel || e.innerText.trim() || e.title
    || e.labels?.length || e.closest('[aria-label]') || e.ariaLabelledByElements?.length))
  .map(e => e.outerHTML.slice(0, 200))
"""


def text_of(browser) -> str:
    return browser.find_element("tag name", "body").text


def press(browser, words: str) -> None:
    button = browser.find_element("xpath", f"//button[contains(., '{words}')]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def press_label(browser, words: str) -> None:
    inside = "*[contains(@class, 'q-radio') or contains(@class, 'q-expansion-item')]"
    browser.find_element("xpath", f"//{inside}//*[text()[contains(., '{words}')]]").click()


def labelled(browser, label: str):
    return browser.find_element("css selector", f"input[aria-label='{label}']")


def traces(browser, plot: int) -> list[dict]:
    found = browser.execute_script(TRACES, plot)
    return json.loads(found) if found else []


def refill(field, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)


def broken(browser) -> list[str]:
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def wait_for_form(browser) -> None:
    wait_until(lambda: "START THE SEARCH" in text_of(browser).upper(), 60, lambda: text_of(browser))


def open_form(server, browser) -> None:
    browser.get(f"{server}/new")
    wait_for_form(browser)


def start(server, browser):
    """Press the button; return the job that the service then has."""
    press(browser, "Start the search")
    wait_until(lambda: "/jobs/" in browser.current_url, 60, lambda: text_of(browser))
    return Client(server).job(browser.current_url.rsplit("/", 1)[-1])


def test_a_job_is_submitted_followed_and_asked_for_another_budget_by_its_slider(server, browser):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.get(f"{server}/")
    wait_until(lambda: "No jobs yet" in text_of(browser), 60, lambda: text_of(browser))
    browser.find_element("css selector", "a.q-btn[href='/new']").click()
    wait_for_form(browser)
    refill(labelled(browser, "Amount"), "0.15x")
    job = start(server, browser).id

    bar = "[aria-labelledby=stage-profile]"
    shares = set()

    def finished() -> bool:
        for element in browser.find_elements("css selector", bar):
            shares.add(float(element.get_attribute("aria-valuenow") or 0))
        return "Another budget" in text_of(browser)

    wait_until(finished, 180, lambda: text_of(browser))
    between = {share for share in shares if 0 < share < 1}
    assert between, f"the profile stage was never seen under way: {sorted(shares)}"

    client = Client(server)
    found = client.result(job)
    wait_until(lambda: len(traces(browser, 2)) > 0, 60)
    wait_until(lambda: len(traces(browser, 1)) > 2, 20)
    pareto, *_, chosen = traces(browser, 1)
    assert len(pareto["x"]) == len(client.frontier(job).points)
    assert chosen["x"] == [pytest.approx(found.costs["weight_memory"])]
    assert {layer for trace in traces(browser, 2) for layer in trace["x"]} == set(found.layers)
    assert f"{found.verification.allocation.metric:.2%}" in text_of(browser)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / "job.png"))

    slider = browser.find_element("css selector", ".q-slider")
    thumb = browser.find_element("css selector", ".q-slider__thumb")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    drag = ActionChains(browser).click_and_hold(thumb)
    for _ in range(6):
        drag = drag.move_by_offset(-60, 0)
    drag.perform()

    def moved() -> bool:
        drawn = traces(browser, 1)  # empty for the moment in which the chart is drawn anew
        return drawn and drawn[-1]["x"][0] < 0.9 * found.costs["weight_memory"]

    wait_until(moved, 60, lambda: str(traces(browser, 1)))  # while the button is still held
    ActionChains(browser).release().perform()
    wait_until(lambda: "optimal" in text_of(browser), 10)
    press_expansion = browser.find_element("xpath", "//*[contains(text(), 'As a table')]")
    browser.execute_script("arguments[0].click()", press_expansion)
    wait_until(lambda: traces(browser, 2), 10)
    bits = {layer: y for t in traces(browser, 2) for layer, y in zip(t["x"], t["y"], strict=True)}
    before = {layer: int(option[1]) for layer, option in found.layers.items()}
    assert sum(bits.values()) < sum(before.values())
    assert not broken(browser)


def test_the_least_use_at_a_bearable_drop_can_be_asked_for(server, browser):
    open_form(server, browser)
    assert "Largest drop" not in text_of(browser)
    press_label(browser, "Least use of a resource")
    refill(labelled(browser, "Largest drop, percent"), "2")
    wait_until(lambda: not browser.find_elements("css selector", "input[aria-label=Amount]"), 20)
    job = start(server, browser)
    asked = job.request
    assert (asked.goal, asked.max_drop, asked.refine) == ("min:weight_memory", 0.02, None)
    assert asked.budget == {}
    wait_until(lambda: "Another budget" in text_of(browser), 180, lambda: text_of(browser))
    answer = Client(server).result(job)
    assert answer.goal == "min:weight_memory"
    measured = answer.verification
    assert measured.float_model.metric - measured.allocation.metric <= 0.02
    assert not broken(browser)


def test_how_many_proposals_are_measured_can_be_said(server, browser):
    open_form(server, browser)
    press_label(browser, "More")
    wait_until(lambda: labelled(browser, "Proposals to measure").is_displayed(), 20)
    refill(labelled(browser, "Proposals to measure"), "3")
    job = start(server, browser)
    assert (job.request.refine, job.request.goal) == (3, None)
    assert Client(server).wait(job, timeout=180).status == "succeeded"
    found = Client(server).result(job)
    assert found.refinement is not None
    assert found.refinement.proposals == 3


def test_every_byte_of_the_page_comes_from_the_server_itself(server, browser):
    for path in ("/", "/new"):
        browser.get(f"{server}{path}")
        wait_until(lambda: "mpsearch" in text_of(browser), 60)
        foreign = [
            name for name in browser.execute_script(TIMES) if not name.startswith((server, "data:"))
        ]
        assert foreign == []
        assert not broken(browser)


def test_on_a_phone_nothing_is_pushed_sideways_and_controls_have_names(server, browser):
    browser.set_window_size(390, 844)
    job = Client(server).submit(
        "digits-resnet", "digits", budget={"weight_memory": "0.15x"}, estimator="sqnr"
    )
    assert Client(server).wait(job, timeout=120).status == "succeeded"
    for path in ("/", "/new", f"/jobs/{job.id}"):
        browser.get(f"{server}{path}")
        wait_until(lambda: len(text_of(browser)) > 200, 60)
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{path} is {wide} px too wide"
        nameless = browser.execute_script(NAMELESS)
        assert nameless == [], path
        browser.save_screenshot(str(SCREENSHOTS / f"phone{path.replace('/', '-')[:6]}.png"))


def test_a_server_with_keys_shows_nothing_before_one_is_given(tmp_path, browser):
    port = free_port()
    program = Path(sys.executable).with_name("mpsearch")
    folder = ["--data-dir", str(tmp_path / "data")]
    made = subprocess.run(
        [
            program,
            "keys",
            "create",
            "me",
            "--scope",
            "read",
            "--scope",
            "write",
            *folder,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    key = made.stdout.strip()
    process = subprocess.Popen([program, "serve", "--port", str(port), *folder])
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_ready(address), 90)
        browser.get(f"{address}/")
        wait_until(lambda: "Log in" in text_of(browser), 60)
        assert "New search" not in text_of(browser)
        labelled(browser, "API key").send_keys("mps_wrong_key")
        press(browser, "Log in")
        wait_until(lambda: "not known" in text_of(browser), 60)
        refill(labelled(browser, "API key"), key)
        press(browser, "Log in")
        wait_until(lambda: "No jobs yet" in text_of(browser), 60, lambda: text_of(browser))
        assert key not in browser.page_source
    finally:
        process.terminate()
        process.wait(30)


def test_what_the_page_does_not_know_the_api_answers(server):
    for method, path, status in (
        ("GET", "/nope", 404),
        ("GET", "/v1/nope", 404),
        ("POST", "/healthz", 405),
        ("GET", "/jobs", 404),
    ):
        answer = httpx2.request(method, f"{server}{path}")
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
    assert httpx2.get(f"{server}/").headers["content-type"].startswith("text/html")
