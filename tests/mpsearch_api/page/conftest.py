"""A real server with the page, and a real browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's importlib mode leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent))

from serving import SCREENSHOTS, free_port, is_ready, wait_until

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    port = free_port()
    program = Path(sys.executable).with_name("mpsearch")
    arguments = ["serve", "--port", str(port), "--data-dir", str(folder / "data")]
    log = (folder / "log.txt").open("wb")
    process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_ready(address), 90, lambda: (folder / "log.txt").read_text()[-3000:])
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture
def browser(tmp_path, request) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1200,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = chromium
    one = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield one
    finally:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        one.save_screenshot(str(SCREENSHOTS / f"{request.node.name}.png"))
        one.quit()
