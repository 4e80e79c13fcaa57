"""Each function as a process, and its pages in Debian's Chromium."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

from function import EMBED, PREDICT, RERANK, ROOT, running
from tokens import SECRET

# rerank has no model of its own; these weights are seeded.
RERANKER = ROOT / "tests" / "conformance" / "fixtures" / "reranker"
VIEWS = {"phone": (390, 844), "desktop": (1280, 900)}
# On a machine that is busy with something else too.
TIMEOUT_MS = 30_000
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="session")
def functions():
    with contextlib.ExitStack() as stack:
        all_ = {
            "predict": stack.enter_context(running(binary=PREDICT)),
            "embed": stack.enter_context(running(binary=EMBED)),
            "rerank": stack.enter_context(running(binary=RERANK, MODEL_URI=RERANKER)),
            "secured": stack.enter_context(running(AUTH="jwt", JWT_SECRET=SECRET)),
        }
        for function in all_.values():
            function.wait_until_healthy()
        yield all_


@pytest.fixture(scope="session")
def browser():
    # Root has no sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium", path="/usr/bin") or shutil.which("chromium")
        yield playwright.chromium.launch(executable_path=chromium, args=arguments)


@pytest.fixture
def visit(browser, functions):
    """Opens a page of a function, which by its end has not failed, called elsewhere or overflowed.

    `before` is given the page before it loads.
    """
    opened, troubles = [], []

    def visit(name, path="/", view="desktop", scheme="light", before=lambda page: None):
        width, height = VIEWS[view]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            is_mobile=view == "phone",
            has_touch=view == "phone",
        )
        context.set_default_timeout(TIMEOUT_MS)
        page, url = context.new_page(), functions[name].url
        opened.append((page, width))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "console",
            lambda line: line.type in ("error", "warning") and troubles.append(line.text),
        )
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:")) or troubles.append(request.url),
        )
        before(page)
        page.goto(url + path)
        ready = page.locator("#count") if path == "/docs" else page.locator("#state")
        expect(ready).to_contain_text("operations" if path == "/docs" else "ready")
        return page

    yield visit
    widths = [
        (page.evaluate("document.documentElement.scrollWidth"), room) for page, room in opened
    ]
    for page, _ in opened:
        page.context.close()
    assert [width for width, room in widths if width > room] == [], "a page scrolls sideways"
    # A refusal is logged as an error by the browser itself.
    assert [trouble for trouble in troubles if "the server responded with" not in trouble] == []


@pytest.fixture
def keep(request):
    """Keeps what is seen as `docs/NAME.png`, if SCREENSHOTS is set."""

    def keep(page, name):
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(path=HERE / "docs" / f"{name}.png")

    return keep
