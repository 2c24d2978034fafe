"""The papers for newcomers say what is so: names, paths, defaults and requests are those of the code."""

import json
import re
from pathlib import Path

import pytest
from starlette.routing import Route
from typer.main import get_command

from service.approvals import Approvals
from service.cli import app as command_line
from service.decisions import Decisions
from service.lists import Lists
from service.pages import Pages
from service.requests import parse_request
from service.settings import KNOWN, PREFIX, SECRETS, load_settings
from service.tokens import Tokens
from service.web import Web

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAPERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/mail-recipes.md")]
PAPERS += sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
#: Each setting's row: its name and what is said of its default.
ROWS = dict(re.findall(r"^\| `([A-Z_]*[A-Z])` \| (.+?) \|", README, re.MULTILINE))


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_what_is_linked_is_there(paper: Path) -> None:
    """Every link into the repository and every path in backticks leads somewhere."""
    text = paper.read_text()
    links = [paper.parent / target for target in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    paths = [
        ROOT / path for path in re.findall(r"`((?:service|tests|docs|examples|benchmarks)/[\w./-]*)`", text)
    ]
    assert [str(path) for path in links + paths if not path.exists()] == []


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_tests_that_are_named_are_there(paper: Path) -> None:
    """A claim that points to a test points to one that is run."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", paper.read_text())
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_setting_is_told() -> None:
    """The table has each setting that is known, and no other."""
    assert ROWS.keys() == KNOWN
    assert [name for name in sorted(SECRETS) if f"`{name}`" not in README] == []
    told = set(re.findall(rf"{PREFIX}([A-Z_]+)", README))
    assert told - KNOWN - {f"{name}_FILE" for name in SECRETS} == set()


def test_defaults_are_the_codes(tmp_path: Path) -> None:
    """What the table says of a default is what one gets who sets nothing."""
    dev = load_settings("dev", {}, tmp_path)
    env = {f"{PREFIX}SECRET_KEYS": "k" * 43, f"{PREFIX}PUBLIC_URL": "https://a.example"}
    serve = load_settings("serve", env, tmp_path)
    same = {
        "ENGINE": dev.engine,
        "ENGINE_DEBUG": "on" if dev.engine_debug else "off",
        "HTTP": str(dev.http),
        "SMTP": f"smtp://{dev.smtp.host}:{dev.smtp.port}",
        "FROM": dev.sender,
        "MAILBOX": str(dev.mailbox),
        "REPLY_DOMAIN": dev.reply_domain,
        "REPLY_PEERS": " ".join(str(network) for network in dev.reply_peers),
        "INBOX_SMTP": str(dev.inbox_smtp),
    }
    assert {name: ROWS[name] for name in same} == {name: f"`{value}`" for name, value in same.items()}
    assert ROWS["REPLY_TRUST"] == f"dev: `{dev.reply_trust}`; serve: `{serve.reply_trust}`"
    assert ROWS["INBOX"] == f"dev: `{dev.inbox}`; serve: `{serve.inbox or 'off'}`"
    assert (
        ROWS["DEFAULT_APPROVER"]
        == f"dev: `{dev.default_approver}`; serve: {str(serve.default_approver).lower()}"
    )
    assert ROWS["PUBLIC_URL"] == f"dev: `{dev.public_url}`; serve: must be set"


def test_every_command_is_told_and_none_else() -> None:
    """Each `approvals` command stands in the README, and what stands there exists."""
    commands = set(getattr(get_command(command_line), "commands", {}))
    promised, _, missing = README.partition("## Not there yet")
    told = set(
        re.findall(
            r"approvals (demo|dev|serve|keys|migrate|backup|receive|request|list|show|check|withdraw)\b",
            promised,
        )
    )
    assert commands == told
    assert "`approvals request`" in missing


def test_every_route_is_told(tmp_path: Path) -> None:
    """Whoever reads the README has met each route."""
    settings = load_settings("dev", {}, tmp_path)
    tokens = Tokens(settings.secret_keys, public_url=settings.public_url, reply_domain="localhost")
    approvals = Approvals.__new__(Approvals)  # routes are made without one
    decisions, lists = Decisions(approvals), Lists.__new__(Lists)
    web = Web(settings, approvals=approvals, decisions=decisions, lists=lists, tokens=tokens, pages=Pages())
    paths = {re.sub(r"\{.*", "", route.path) for route in web.app.routes if isinstance(route, Route)}
    assert [path for path in sorted(paths) if path not in README] == []


def test_requests_of_the_readme_are_valid() -> None:
    """What is posted to /approvals opens an approval; the walk-through's own call stands as it is."""
    bodies = re.findall(r"/approvals -H \"Content-Type: application/json\" -d '(\{.*?\})'", README, re.DOTALL)
    assert bodies
    for body in bodies:
        parse_request(json.loads(body))
    requests = re.findall(r"rpc\(\s*\"approval\", (\{.*?\})\s*\)", README, re.DOTALL)
    assert requests
    for request in requests:
        parse_request(json.loads(request))
    assert (
        "curl -X POST http://localhost:5001/start-workflow "
        '-H "Content-Type: application/json" '
        '-d \'{"workflow_id": "hitl-001"}\''
    ) in README


def test_languages_are_counted() -> None:
    """As many languages as are told; signs that belong to none are not one."""
    files = (ROOT / "service" / "replies" / "languages").glob("*.toml")
    assert f"one of {len([file for file in files if file.stem != 'zxx'])} languages" in README
