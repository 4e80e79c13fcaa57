"""The pages of a function in Debian's Chromium, on a phone and on a desktop, by day and by night.

With `SCREENSHOTS=1`, what was seen is kept in `docs`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

from function import EMBED, PREDICT, RERANK, ROOT, running

VIEWS = {"phone": (390, 844), "desktop": (1280, 900)}
# On a machine that is busy with something else too.
TIMEOUT_MS = 30_000
expect.set_options(timeout=TIMEOUT_MS)
RERANKER = ROOT / "tests" / "conformance" / "fixtures" / "reranker"


@pytest.fixture(scope="module")
def functions():
    with (
        running(binary=PREDICT) as predict,
        running(binary=EMBED) as embed,
        running(binary=RERANK, MODEL_URI=RERANKER) as rerank,
    ):
        for function in (predict, embed, rerank):
            function.wait_until_healthy()
        yield {"predict": predict, "embed": embed, "rerank": rerank}


@pytest.fixture(scope="module")
def browser():
    # Root has no sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        yield playwright.chromium.launch(executable_path=chromium, args=arguments)


@pytest.fixture
def visit(browser, functions):
    """Opens a page of a function; at the end, no page has asked elsewhere, failed or overflowed."""
    contexts, troubles = [], []

    def opened(name, path="/", view="desktop", scheme="light"):
        width, height = VIEWS[view]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            is_mobile=view == "phone",
            has_touch=view == "phone",
        )
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page, url = context.new_page(), functions[name].url
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda line: line.type == "error" and troubles.append(line.text))
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:")) or troubles.append(request.url),
        )
        page.goto(url + path)
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            width, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert width <= room, "the page scrolls sideways"
        context.close()
    # A refusal is logged as an error by the browser itself.
    assert [trouble for trouble in troubles if "the server responded with" not in trouble] == []


def keep(page, name):
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=HERE / "docs" / f"{name}.png")


def send(page):
    expect(page.locator("#state")).to_have_text("ready")
    page.click("#send")
    expect(page.locator("#answer .bars li").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_text_gets_labels_as_bars_and_its_time_by_stage(visit, view, scheme):
    page = visit("predict", view=view, scheme=scheme)
    send(page)
    labels = page.locator("#answer .bars li b").all_text_contents()
    assert labels == ["POSITIVE", "NEGATIVE"]
    expect(page.locator("#answer .bars .num").first).to_have_text(re.compile(r"^\d+\.\d\d %$"))
    stages = page.locator("#stages li").all_text_contents()
    assert [stage.split()[0] for stage in stages] == ["tokenize", "queue", "forward", "network"]
    if (view, scheme) != ("desktop", "dark"):
        page.locator("#answer-title").scroll_into_view_if_needed()
    keep(page, f"predict-{view}-{scheme}")


def test_a_burst_shows_the_batches_that_it_makes(visit):
    page = visit("predict")
    send(page)
    page.click("#burst")
    expect(page.locator("#burst-result")).to_contain_text("64 of 64 answered")
    assert page.locator("#strip div").count() > 1
    expect(page.locator("#waiting")).to_have_text("Waiting: 0 of 512")
    page.locator("#activity").scroll_into_view_if_needed()
    keep(page, "predict-batches")


def test_an_empty_text_is_refused_in_words(visit):
    page = visit("predict", view="phone")
    expect(page.locator("#state")).to_have_text("ready")
    page.fill("#text", "  ")
    page.click("#send")
    expect(page.locator("#error")).to_contain_text("422 empty")
    expect(page.locator("#error")).to_contain_text("text: is empty")


def test_the_keyboard_is_enough(visit):
    page = visit("predict")
    expect(page.locator("#state")).to_have_text("ready")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the form")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("Two dull hours.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer .bars li b").first).to_have_text("NEGATIVE")
    # A screen reader hears it.
    expect(page.locator("#say")).to_contain_text("NEGATIVE")
    page.focus("#tab-0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-1")).to_be_focused()
    expect(page.locator("#panel-1")).to_be_visible()


def test_the_code_that_is_shown_asks_the_same(visit, functions):
    page = visit("predict")
    page.fill("#text", 'It\'s a "fine" film\nwith $HOME `quotes`.')
    send(page)
    native = functions["predict"].predict(text=page.input_value("#text"), top_k=2).json()
    shown = page.locator("#panel-0 code").text_content()
    ran = subprocess.run(shown, shell=True, check=True, capture_output=True, text=True)
    assert json.loads(ran.stdout) == native
    page.click("#tab-2")
    script = page.locator("#panel-2 code").text_content().replace("console.log(", "return (")
    assert page.evaluate(f"(async () => {{ {script} }})()") == native


def test_the_nearest_sentence_comes_first(visit):
    page = visit("embed")
    send(page)
    nearest = "Where can I change the password of my account?"
    expect(page.locator("#answer .bars li b").first).to_have_text(nearest)
    assert page.locator("#answer .bars li").count() == 5
    keep(page, "embed-desktop-light")


def test_texts_are_ranked(visit, functions):
    page = visit("rerank", view="phone", scheme="dark")
    send(page)
    texts = page.input_value("#texts").splitlines()
    query = page.input_value("#query")
    ranked = functions["rerank"].post("/rerank", query=query, texts=texts).json()
    seen = page.locator("#answer .bars li b").all_text_contents()
    assert seen == [texts[each["index"]] for each in ranked]
    page.locator("#answer-title").scroll_into_view_if_needed()
    keep(page, "rerank-phone-dark")


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("name", ["predict", "embed", "rerank"])
def test_everything_that_is_used_has_a_name(visit, name, path):
    page = visit(name, path)
    page.wait_for_load_state("networkidle")
    nameless = page.evaluate(
        """[...document.querySelectorAll("a, button, input, textarea, select, [role=tab]")]
        .filter(each => !(each.labels?.length || each.textContent.trim()
            || each.getAttribute("aria-label") || each.getAttribute("aria-labelledby")
            || each.title || each.placeholder)).map(each => each.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("view", VIEWS)
def test_the_docs_name_every_operation_of_every_dialect(visit, functions, view):
    page = visit("embed", "/docs", view=view, scheme="dark" if view == "phone" else "light")
    page.wait_for_load_state("networkidle")
    text = page.locator("body").inner_text()
    for path in ("/embed", "/v1/embeddings", "/v2/models/{model}/infer", "/health"):
        assert path in text
    for dialect in ("OpenAI", "KServe v1", "CloudEvents", "SageMaker"):
        assert dialect in text
    keep(page, f"docs-{view}")


def test_the_docs_send_an_example(visit):
    page = visit("predict", "/docs")
    page.wait_for_load_state("networkidle")
    page.click("#post-v1-classify > summary")
    page.locator("#post-v1-classify button").first.click()
    expect(page.locator("#post-v1-classify [data-status]").first).to_contain_text("200")
