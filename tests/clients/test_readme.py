"""The README's tables of routes and settings are those that the functions have."""

import re

import httpx
import pytest
from function import ROOT, run_to_end

FUNCTIONS = ["predict", "embed", "rerank"]
# The same paths with a version of the model in them are told in a sentence.
VERSION = "/versions/{version}"


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose first row is `header`."""
    _, _, table = (ROOT / "README.md").read_text().partition(f"{header}\n")
    lines = table.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def routes(dialect: str, cell: str) -> set[tuple[str, str]]:
    return {(dialect, route) for route in re.findall(r"`([^`]+)`", cell)}


@pytest.fixture(scope="module")
def served(request):
    """Dialects and routes of each function, as its document names them."""

    def of(function) -> set[tuple[str, str]]:
        paths = httpx.get(f"{function.url}/openapi.json").json()["paths"]
        return {
            (tag, f"{method.upper()} {path}")
            for path, methods in paths.items()
            for method, operation in methods.items()
            for tag in operation["tags"]
            if VERSION not in path
        }

    return {name: of(request.getfixturevalue(name)) for name in FUNCTIONS}


def test_the_readme_names_every_route_and_no_other(served):
    table = rows("| Dialect | `predict` | `embed` | `rerank` |")
    shared = set.union(*(routes(*row) for row in rows("| Dialect | Routes |")))
    assert shared <= set.intersection(*served.values())
    # Nobody has to be told how to ask for metadata of tensors.
    shared.add(("Open Inference Protocol v2", "GET /v2/models/{model}"))
    for column, name in enumerate(FUNCTIONS, start=1):
        own = set.union(*(routes(row[0], row[column]) for row in table))
        assert own | shared == served[name], name


def test_the_settings_are_those_of_the_help():
    help_lines = run_to_end("--help").stdout.splitlines()
    listed = [re.fullmatch(r"  ([A-Z][A-Z0-9_]+) +(.+)", line) for line in help_lines]
    expected = [
        f"| `{line[1]}` | {line[2].replace('|', chr(92) + '|')} |" for line in listed if line
    ]
    _, _, table = (ROOT / "README.md").read_text().partition("| Setting | Meaning |\n|---|---|\n")
    assert table.split("\n\n")[0].splitlines() == expected
