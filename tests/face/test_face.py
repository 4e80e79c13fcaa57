"""The pages of a function, on a phone and on a desktop, in light and in dark.

With `SCREENSHOTS=1`, what was seen is kept in `docs`.
"""

import ast
import json
import re
import subprocess
import sys

import httpx
import pytest
from conftest import VIEWS
from playwright.sync_api import expect
from tokens import token

FUNCTIONS = ["predict", "embed", "rerank"]
both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"])
both_views = pytest.mark.parametrize("view", VIEWS)

# Text whose contrast with what is behind it is below WCAG's AA for small text.
FAINT = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(part => part / 255)
    .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [.2126, .7152, .0722][at], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  return [...document.querySelectorAll("body *:not(script)")].filter(element => element.checkVisibility()
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || element.value)
    .map(element => [light(parse(getComputedStyle(element).color)), light(behind(element)), element])
    .filter(([a, b]) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5)
    .map(([, , element]) => element.outerHTML.slice(0, 90));
}"""
CONTROLS = {"button", "link", "textbox", "searchbox", "spinbutton", "combobox", "tab", "checkbox"}
CONTROLS |= {"DisclosureTriangle", "meter", "image", "status", "alert", "tabpanel", "navigation"}


def send(page):
    page.click("#send")
    expect(page.locator("#answer .bars li").first).to_be_visible()


def answers(page):
    return page.locator("#answer .bars b").all_text_contents()


def nameless(page):
    """Controls that a screen reader cannot name, by Chromium's own tree of them."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in tree if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert len(controls) > 9
    speaks_itself = {"status", "alert"}
    return [
        node
        for node in controls
        if not node.get("name", {}).get("value") and node["role"]["value"] not in speaks_itself
    ]


@both_schemes
@both_views
def test_a_text_gets_its_labels_and_its_time_by_stage(visit, keep, functions, view, scheme):
    page = visit("predict", view=view, scheme=scheme)
    send(page)
    best, other = functions["predict"].predict(text=page.input_value("#text"), top_k=2).json()
    assert answers(page) == [best["label"], other["label"]]
    scores = page.locator("#answer .bars .num").all_text_contents()
    assert scores == [f"{100 * each['score']:.2f} %" for each in (best, other)]
    stages = page.locator("#stages li").all_text_contents()
    assert [stage.split()[0] for stage in stages] == ["tokenize", "queue", "forward", "network"]
    assert all(re.fullmatch(r"\w+ \d+(\.\d+)? ms", stage) for stage in stages)
    assert page.locator("#stack i").count() == 4
    assert page.evaluate(FAINT) == []
    if (view, scheme) != ("phone", "dark"):
        keep(page, "page-dark" if scheme == "dark" else f"page-{view}")


@both_views
def test_an_empty_text_is_refused_in_words(visit, view):
    page = visit("predict", view=view, scheme="dark")
    page.fill("#text", "  ")
    page.click("#send")
    error = page.get_by_role("alert").filter(visible=True)
    expect(error).to_contain_text("422 empty")
    expect(error).to_contain_text("text: is empty")
    assert page.evaluate(FAINT) == []
    page.fill("#text", "Good.")
    send(page)
    expect(error).to_have_count(0)


def test_a_text_that_is_cut_is_said_to_be(visit):
    page = visit("predict")
    page.fill("#text", "An uneven film. " * 300)
    send(page)
    expect(page.locator("#cut")).to_contain_text("512 tokens")


def test_the_strip_shows_the_batch_of_a_call(visit, functions):
    page = visit("predict")
    batches = httpx.get(f"{functions['predict'].url}/activity").json()["batches"]
    before = batches[0]["number"] if batches else 0
    page.fill("#text", "Good.")
    send(page)
    newest = page.locator("#strip [title]").first
    # Two words, [CLS] and [SEP].
    title = re.compile(rf"^Batch {before + 1}: 1 text, 4 tokens, [\d.]+ ms$")
    expect(newest).to_have_attribute("title", title)


@both_views
def test_a_burst_is_batched_and_answered(visit, view):
    page = visit("predict", view=view)
    page.click("#burst")
    expect(page.locator("#burst-result")).to_contain_text("64 of 64 answered")
    expect(page.locator("#burst-result")).to_contain_text("P99")
    expect(page.locator("#waiting")).to_have_text("Waiting: 0 of 512")
    assert page.locator("#strip [title]").count() > 1


def test_the_code_that_is_shown_gets_the_same_answer(visit, functions):
    page = visit("predict")
    page.fill("#text", 'It\'s a "fine" film\nwith $HOME `quotes`.')
    send(page)
    native = functions["predict"].predict(text=page.input_value("#text"), top_k=2).json()
    curl = page.get_by_role("tabpanel").text_content()
    ran = subprocess.run(curl, shell=True, check=True, capture_output=True, text=True)
    assert json.loads(ran.stdout) == native
    page.get_by_role("tab", name="JavaScript").click()
    script = page.get_by_role("tabpanel").text_content().replace("console.log(", "return (")
    assert page.evaluate(f"(async () => {{ {script} }})()") == native
    page.get_by_role("tab", name="Python").click()
    python = page.get_by_role("tabpanel").text_content().replace("requests", "httpx")
    ran = subprocess.run([sys.executable, "-c", python], check=True, capture_output=True, text=True)
    assert ast.literal_eval(ran.stdout) == native


def test_the_keyboard_is_enough(visit):
    page = visit("predict")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the form")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#text")).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Control+A")
    page.keyboard.type("Two dull hours.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer .bars b").first).to_have_text("NEGATIVE")
    # A screen reader hears it.
    expect(page.locator("#say")).to_contain_text("NEGATIVE")
    while page.evaluate("document.activeElement.id") != "send":
        page.keyboard.press("Tab")
        assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    while page.evaluate("document.activeElement.id") != "tab-0":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_contain_text("import requests")


def test_the_nearest_sentence_comes_first(visit, keep):
    page = visit("embed")
    send(page)
    assert answers(page)[0] == "Where can I change the password of my account?"
    scores = [float(score) for score in page.locator("#answer .bars .num").all_text_contents()]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    keep(page, "embed-desktop")


def test_texts_are_ranked(visit, keep, functions):
    page = visit("rerank", view="phone", scheme="dark")
    send(page)
    texts, query = page.input_value("#texts").splitlines(), page.input_value("#query")
    ranked = functions["rerank"].post("/rerank", query=query, texts=texts).json()
    assert answers(page) == [texts[each["index"]] for each in ranked]
    keep(page, "rerank-phone-dark")


def test_a_function_with_a_route_of_its_own_gets_its_body_from_its_schema(visit, functions):
    """As if `predict` answered `/spam`."""
    url = functions["predict"].url
    api = httpx.get(f"{url}/openapi.json").json()
    operation = {**api["paths"].pop("/predict")["post"], "tags": ["Sanderling"]}
    [media] = operation["requestBody"]["content"].values()
    del media["examples"]
    api["paths"]["/spam"] = {"post": operation}

    def before(page):
        page.route("**/openapi.json", lambda route: route.fulfill(json=api))
        page.route(
            "**/spam", lambda route: route.fulfill(response=route.fetch(url=f"{url}/predict"))
        )

    page = visit("predict", before=before)
    expect(page.locator("#form")).to_contain_text("POST /spam")
    assert list(json.loads(page.input_value("#json"))) == ["text"]
    page.fill("#json", '{"text": "Good.", "top_k": 2}')
    page.click("#send")
    expect(page.locator("#answer")).to_contain_text('"label": "POSITIVE"')
    expect(page.get_by_role("tabpanel")).to_contain_text(f"{url}/spam")


def test_a_function_that_needs_a_token_gets_the_one_that_is_typed_in(visit, functions):
    page = visit("secured")
    page.get_by_label("Token").fill(token())
    send(page)
    assert answers(page)[0] == "POSITIVE"
    # No longer polled without one: what waits is seen from now on.
    expect(page.locator("#strip div").first).to_be_visible()
    languages = page.get_by_role("tab")
    for language in languages.all():
        language.click()
        code = page.get_by_role("tabpanel").text_content()
        assert "Bearer" in code and token() not in code
    languages.nth(1).click()
    code = page.get_by_role("tabpanel").text_content()
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"TOKEN": token()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ast.literal_eval(ran.stdout)[0]["label"] == "POSITIVE"
    assert functions["secured"].predict(text="a").status_code == 401


def test_the_docs_send_the_token_that_is_typed_in(visit):
    page = visit("secured", "/docs")
    page.get_by_label("Token").fill(token())
    operation = page.locator("#post-predict")
    operation.locator("> summary").click()
    operation.get_by_role("button", name="Send").click()
    expect(operation.locator("[data-status]")).to_contain_text("200")


def test_without_tokens_nobody_is_asked_for_one(visit):
    for path in ["/", "/docs"]:
        expect(visit("predict", path).locator("#credentials")).to_be_hidden()


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_control_has_a_name(visit, name, path):
    page = visit(name, path, view="phone")
    if path == "/docs":
        page.locator(f"#post-{name} > summary").click()
    assert nameless(page) == []


@both_schemes
@both_views
def test_the_docs_name_every_dialect_and_are_filtered(visit, keep, functions, view, scheme):
    page = visit("rerank", "/docs", view=view, scheme=scheme)
    dialects = page.locator("main h2").all_text_contents()
    api = httpx.get(f"{functions['rerank'].url}/openapi.json").json()
    assert dialects == [tag["name"] for tag in api["tags"]]
    page.locator("#post-rerank > summary").click()
    expect(page.locator("#post-rerank")).to_contain_text("return_text")
    assert "[object" not in page.locator("main").inner_text()
    assert page.evaluate(FAINT) == []
    if (view, scheme) != ("phone", "dark") and (view, scheme) != ("desktop", "dark"):
        keep(page, f"docs-{view}")
    page.get_by_label("Filter").fill("cohere")
    expect(page.locator("#count")).to_contain_text("2 of ")
    shown = page.locator("main h3 code").filter(visible=True)
    assert shown.all_text_contents() == ["/v1/rerank", "/v2/rerank"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_example_of_the_docs_is_answered(visit, name):
    page = visit(name, "/docs")
    refused = []
    for operation in page.locator("details.op").all():
        operation.locator("> summary").click()
        choices = operation.locator("select option").count() or 1
        for choice in range(choices):
            if choices > 1:
                operation.locator("select").select_option(index=choice)
            operation.get_by_role("button", name="Send").click()
            status = operation.locator("[data-status]")
            expect(status).to_be_visible()
            if status.get_attribute("data-status") != "200":
                refused.append((operation.get_attribute("id"), choice, operation.inner_text()))
    assert refused == []
