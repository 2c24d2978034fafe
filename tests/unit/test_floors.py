"""The house's floors: a module imports only from floors below its own; and the error tree as it is drawn."""

import ast
import re
from pathlib import Path

import grimp
import pytest
from grimp import Layer

from service import errors
from service.errors import ApprovalsError

ROOT = "service"
#: From low to high. Modules on one floor may know one another, but for `APART`; absent ones are no matter.
FLOORS: list[tuple[str, ...]] = [
    ("errors",),
    ("requests",),
    ("domain",),
    ("tokens",),
    ("wording", "replies", "senders"),
    ("letters", "pages"),
    ("endpoints",),
    ("readers",),
    ("settings",),
    ("engine",),
    ("records",),
    ("approvals",),
    ("conversation",),
    ("answers", "decisions", "journal", "lists", "outbox", "responses"),
    ("workflow", "parked", "migrate"),
    ("sockets",),
    ("web", "mailbox", "imap", "inbox", "receive", "smtpd"),
    ("app",),
    ("terminal",),
    ("check", "demo", "serving"),
    ("cli",),
    ("__main__",),
]
#: The edges meet in `app` alone.
APART = ("web", "mailbox", "outbox", "inbox")
#: Parts that know less of the house than their floor would let them.
ONLY = {"engine": {"errors"}, "replies": {"errors", "requests", "domain"}}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import in the package, those for type checkers too."""
    return grimp.build_graph(ROOT, cache_dir=None)


def part_of(module: str) -> str:
    """Return the top part of the house that `module` is in, such as ``engine`` of ``service.engine.rows``."""
    return module.removeprefix(f"{ROOT}.").partition(".")[0]


def imports_between_parts(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Return who imports whom, by part; the package itself is no part."""
    pairs = {
        (part_of(module), part_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return {(importer, imported) for importer, imported in pairs if imported not in {importer, ROOT}}


def test_every_part_has_its_floor(graph: grimp.ImportGraph) -> None:
    """A new module is given a floor here before anything can lean on it."""
    parts = {part_of(module) for module in graph.modules if module != ROOT}
    placed = {part for floor in FLOORS for part in floor}
    assert parts <= placed, f"name the floor of {parts - placed} in FLOORS"


def test_nothing_imports_from_above(graph: grimp.ImportGraph) -> None:
    """No chain of imports, however long, leads from a floor to one above it."""
    layers = [Layer(*floor, independent=False) for floor in reversed(FLOORS)]
    broken = graph.find_illegal_dependencies_for_layers(layers=layers, containers={ROOT})
    assert not {(found.importer, found.imported) for found in broken}


def test_the_edges_do_not_know_one_another(graph: grimp.ImportGraph) -> None:
    """web, mailbox, outbox and inbox never import one another; they meet in app."""
    pairs = imports_between_parts(graph)
    assert not {(one, other) for one, other in pairs if one in APART and other in APART}


@pytest.mark.parametrize("part", sorted(ONLY))
def test_a_part_that_stands_alone_knows_little(graph: grimp.ImportGraph, part: str) -> None:
    """The engine would serve any other service; the reply reader is a function of bytes."""
    assert {other for one, other in imports_between_parts(graph) if one == part} <= ONLY[part]


def test_only_the_workflow_has_a_context() -> None:
    """Durable code is in one module, where a replay is thought of on every line; `check` has two."""
    package = Path(str(errors.__file__)).parent
    users = set()
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import(names=names):
                    found = any(name.name.startswith("resonate.context") for name in names)
                case ast.ImportFrom(module=module, names=names):
                    source = module or ""
                    taken = {name.name for name in names} & {"context", "Context"}
                    found = source.startswith("resonate.context") or (source == "resonate" and bool(taken))
                case _:
                    found = False
            if found:
                users.add(path.relative_to(package).as_posix())
    assert users <= {"workflow.py", "check.py"}


# ── The error tree ────────────────────────────────────────────────────────────

ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ApprovalsError) and kind is not ApprovalsError
]


def test_the_tree_is_drawn_as_it_is() -> None:
    """The drawing at the top names every error of the module, and what each answers."""
    drawn = dict(re.findall(r"── (\w+) +(\d{3})?", str(errors.__doc__)))
    assert set(drawn) == {kind.__name__ for kind in ERRORS}
    for kind in ERRORS:
        code = drawn[kind.__name__]
        assert not code or code in {str(kind.http_status), kind.smtp_reply[:3]}


@pytest.mark.parametrize("kind", [ApprovalsError, *ERRORS])
def test_every_error_answers_at_both_edges(kind: type[ApprovalsError]) -> None:
    """An HTTP status, one SMTP reply line with an enhanced code of its class, and a title of its own."""
    assert 400 <= kind.http_status < 600
    assert re.fullmatch(r"([45])\d\d \1\.\d{1,3}\.\d{1,3} [ -~]+", kind.smtp_reply)
    assert kind.title
    assert kind is ApprovalsError or kind.title != ApprovalsError.title


def test_an_engine_that_is_away_loses_nothing() -> None:
    """The sender's mail server keeps the reply and comes again; a client may try again."""
    assert errors.EngineAway.smtp_reply.startswith("451 ")
    assert errors.EngineAway.http_status == 503
    assert ApprovalsError.smtp_reply.startswith("451 ")
