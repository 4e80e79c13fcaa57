"""What a text may hold, and what becomes of the rest."""

import httpx
import pytest
from function import run_to_end, running

DENIED = ["<script>alert(1)</script>", "a <ScRiPt", "JavaScript:alert(1)", "<img ONERROR=x>"]


def num_chars(function, text: str) -> int:
    """How many characters count."""
    return int(function.predict(text=text).headers["x-compute-characters"])


@pytest.mark.parametrize("text", [*DENIED, "java\0script:x"])
def test_markup_is_refused_and_not_repeated(predict, text):
    answer = predict.predict(text=text)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("denied", "text")
    assert error["message"] == "text: holds what INPUT_DENY forbids"


def test_markup_is_refused_in_every_dialect(predict):
    text = DENIED[0]
    bodies = {
        "/v1/classify": {"input": text},
        "/predict": {"inputs": [["fine"], [text]]},
        "/": {"inputs": text},
        "/v1/models/predict:predict": {"instances": [text]},
    }
    for path, body in bodies.items():
        answer = httpx.post(f"{predict.url}{path}", json=body)
        assert answer.status_code in (400, 422), path
        assert "script>" not in answer.text


def test_an_honest_text_about_scripts_is_not(predict):
    assert predict.predict(text="The script of this film, on error = none.").status_code == 200


def test_characters_are_counted_in_clean_text(predict):
    assert num_chars(predict, "good") == 4
    assert num_chars(predict, " \t\r\n good\u0000\u0085\u007f  ") == 4
    assert num_chars(predict, "so\tgood\n!") == 9
    assert num_chars(predict, "x" * 5000 + " " * 1000) == 5000
    assert predict.predict(text=" " + "x" * 5001).status_code == 422


def test_a_clean_text_is_answered_like_one_that_has_to_be_cleaned(predict):
    clean, dirty = "What a film it is", "\u0001What\ta film\nit is\u009f "
    assert predict.predict(text=clean).json() == predict.predict(text=dirty).json()


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u0000\u0001", "\u0085\u3000"])
def test_a_text_with_nothing_in_it_is_empty(predict, text):
    assert predict.predict(text=text).json()["error"]["code"] == "empty"


def test_what_is_denied_is_a_setting():
    with running(INPUT_DENY="off") as function:
        function.wait_until_healthy()
        assert {function.predict(text=text).status_code for text in DENIED} == {200}
    # A pattern over which others would hang.
    with running(INPUT_DENY="(x+x+)+y|secret") as function:
        function.wait_until_healthy()
        assert function.predict(text="x" * 5000).status_code == 200
        assert function.predict(text="a SECRET").status_code == 422
        assert function.predict(text=DENIED[0]).status_code == 200


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)", "(?:[a-z]{1000}){1000}"])
def test_a_pattern_that_cannot_be_linear_is_refused(pattern):
    ended = run_to_end(INPUT_DENY=pattern)
    assert ended.returncode == 2
    assert "INPUT_DENY: " in ended.stderr
