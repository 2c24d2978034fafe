# ruff: noqa: INP001, T201 - a script, and printing is what it does
"""A workflow of your own that asks a person, and waits for as long as they take.

Start the service with its engine open to this machine's other processes, then this::

    APPROVALS_ENGINE_HTTP=127.0.0.1:8001 uv run approvals dev
    uv run python examples/python/refund.py refund-42 ann@localhost

Stop it while it waits and start it again with the same arguments: it goes on
where it was, and nobody is asked twice.
"""

import asyncio
import os
import sys
from datetime import timedelta
from typing import Any

from resonate.context import Context
from resonate.resonate import Resonate

ENGINE = os.environ.get("ENGINE_URL", "http://127.0.0.1:8001")
#: How long the whole refund may take. What it asks for lives no longer than it does.
LIFE = timedelta(days=15)


async def refund(ctx: Context, amount: str, approver: str) -> str:
    """Pay `amount` back if `approver` says so."""
    # "approvals" is the group of the service's workers.
    asking = ctx.options(target="approvals", timeout=LIFE)
    report: dict[str, Any] = await asking.rpc(
        "approval",
        {
            "subject": f"Refund {amount} to Ana Lima",
            "message": "The parcel arrived damaged. This is day 12 of 30.",
            "facts": {"Amount": amount},
            "approvers": [approver],
            "requester": {"email": "bob@localhost", "name": "Bob Smith"},
            "due": "P3D",
        },
    )
    if report["status"] != "approved":
        return f"not paid: {report['status']}"
    return await ctx.run(pay, amount)


def pay(_: Context, amount: str) -> str:
    """Do what needed the approval; journaled, so a replay does not pay again."""
    return f"paid {amount}"


async def main(refund_id: str, approver: str) -> None:
    """Run the refund, or take it up where it was left."""
    resonate = Resonate(url=ENGINE, token=os.environ.get("ENGINE_TOKEN"), group="refunds")
    resonate.register(refund)
    started = resonate.options(timeout=LIFE).run(refund_id, refund, "120.00 EUR", approver)
    print(f"{refund_id} waits for {approver}")
    print(f"{refund_id}: {await started.result()}")
    await asyncio.sleep(0.5)  # the SDK's stop hangs on an answer that is under way
    await resonate.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
