"""The page, served once by a process of its own, and a browser that knows this machine only."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
APP = ROOT / "hub_cards" / "space" / "app.py"
PICTURES = ROOT / "runs" / "demo"
CHROMIUM = "/usr/bin/chromium"
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
SWITCHES += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 90.0
"""Seconds; an idle machine needs two."""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.demo)


@pytest.fixture(scope="session")
def app():
    """The page's module, without serving it."""
    pytest.importorskip("gradio")
    spec = importlib.util.spec_from_file_location("space_app", APP)
    module = importlib.util.module_from_spec(spec)
    sys.modules["space_app"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def address():
    """Where the page is served, as `python hub_cards/space/app.py` serves it."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    PICTURES.mkdir(parents=True, exist_ok=True)
    told = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with (PICTURES / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, str(APP)], env=os.environ | told, stdout=log, stderr=subprocess.STDOUT, cwd=PICTURES
        )
        try:
            end = time.monotonic() + PATIENCE
            while True:
                assert server.poll() is None, (PICTURES / "server.log").read_text()
                assert time.monotonic() < end, f"the page is not served after {PATIENCE:.0f} s"
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(20)
    assert "Traceback" not in (PICTURES / "server.log").read_text()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no browser {CHROMIUM}; `make test-demo` installs it, as root")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=SWITCHES,
            viewport={"width": 1280, "height": 900},
            accept_downloads=True,
        )
        context.set_default_timeout(1000 * PATIENCE)
        yield context
        context.close()


@pytest.fixture
def page(browser, address):
    """The page with its first example; at the end nothing went wrong in it, and it asked no other host for anything."""
    tab = browser.new_page()
    complaints, strangers = [], []
    tab.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("response", lambda got: complaints.append(f"{got.status} {got.url}") if got.status >= 400 else None)

    def asked(request):
        where = urlsplit(request.url)
        if where.scheme in ("http", "https", "ws", "wss") and where.hostname != "127.0.0.1":
            strangers.append(request.url)

    tab.on("request", asked)
    tab.goto(address)
    tab.wait_for_selector("#labels table.labels")
    yield tab
    tab.close()
    assert complaints == []
    assert strangers == []
