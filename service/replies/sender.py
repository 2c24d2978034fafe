"""Whose mail it claims to be: exactly one From, one address, zero defects."""

import re
from email.headerregistry import HeaderRegistry
from typing import Any, Final

from service.replies.mime import MAX_FROM, Exceeded, Headers
from service.replies.values import Doubt
from service.requests import canonical_address

_REGISTRY: Final = HeaderRegistry()
_MESSAGE_ID: Final = re.compile(r"<[!-;=?-~]{1,250}>")


def sender_of(headers: Headers) -> str:
    """Return the canonical address of the one From.

    Raises Exceeded, with what is wrong, for anything else: ``From: ann@corp.com
    <evil@bad.com>`` parses to ann's address with only a defect noted.
    """
    values = headers.all("from")
    if not values:
        raise Exceeded(Doubt.NO_SENDER)
    if len(values) > 1:
        raise Exceeded(Doubt.SEVERAL_SENDERS, f"{len(values)} From fields")
    if len(values[0]) > MAX_FROM:
        raise Exceeded(Doubt.FIELD_TOO_LONG, "from")
    try:
        # The parser promises no set of errors: on nested comments it recurses without
        # end, on ":;" it misses an attribute. Whatever it raises, the field is malformed.
        parsed: Any = _REGISTRY("from", values[0])
        addresses, defects, groups = parsed.addresses, parsed.defects, parsed.groups
    except Exception as exc:
        raise Exceeded(Doubt.MALFORMED_SENDER, type(exc).__name__) from exc
    if len(addresses) > 1:
        raise Exceeded(Doubt.SEVERAL_SENDERS, f"{len(addresses)} addresses")
    if defects or not addresses or any(group.display_name is not None for group in groups):
        raise Exceeded(Doubt.MALFORMED_SENDER, type(defects[0]).__name__ if defects else "no address")
    try:
        return canonical_address(addresses[0].addr_spec)
    except ValueError as exc:
        raise Exceeded(Doubt.MALFORMED_SENDER, str(exc)) from exc


def message_id_of(headers: Headers) -> str | None:
    """Return the one Message-ID, angle brackets included, where it is well formed."""
    values = headers.all("message-id")
    return values[0] if len(values) == 1 and _MESSAGE_ID.fullmatch(values[0]) else None
