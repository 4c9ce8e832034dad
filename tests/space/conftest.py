"""The Space as a visitor meets it: `python space/app.py` in a process of its own, and a real browser."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.space import chromium

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

ROOT = Path(__file__).parents[2]
TIMEOUT = 60_000  # milliseconds; of a busy machine


class Server:
    """Address, process and log of a running Space."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        slow = Path(__file__).with_name("slow.py")
        command = [sys.executable, str(slow), str(ROOT / "space" / "app.py"), "--port", str(port)]
        env = {"GRADIO_TEMP_DIR": str(folder / "gradio")} | os.environ
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT,
                # a shell ignores SIGINT for what it starts in the background, and children inherit that
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        deadline = time.monotonic() + 300  # seconds; a dozen on a machine with nothing else to do
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(self.url, timeout=20).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.2)
        self.stop()
        pytest.fail(f"the Space did not start:\n{self.log.read_text()}", pytrace=False)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("space"))
    yield server
    server.stop()


@pytest.fixture(scope="module")  # closed before another room needs an event loop of its own
def browser():
    """A browser is part of what these tests need: without one they fail, they do not skip."""
    from playwright.sync_api import expect, sync_playwright

    executable = chromium.find()
    if executable is None:
        pytest.fail(chromium.MISSING, pytrace=False)
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=chromium.ARGUMENTS)
        yield browser
        browser.close()


def count_streams(page):
    """`page.streams`: Gradio's streams of answers that are open; `page.streams_begun`: how many there have been."""
    page.streams, page.streams_begun = set(), 0

    def begin(request):
        if "queue/data" in request.url:
            page.streams.add(request)
            page.streams_begun += 1

    page.on("request", begin)
    for end in ("requestfinished", "requestfailed"):  # failed: the page broke it off, having read all
        page.on(end, lambda request: page.streams.discard(request))


@pytest.fixture
def visit(browser, server):
    """Opens the page, with options of a browser context; at the end, the console must have been quiet."""
    complaints, contexts = [], []

    def open_page(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 1000}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda r: complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else complaints.append(r.url),
        )
        count_streams(page)
        page.goto(server.url)
        page.locator("#ask").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
