"""Which letter a mail answers, by what its sender's program wrote.

A mail that its approver really wrote, and signed, may have been an answer to something
else: whoever has a copy of it and knows a reply address could send it there again. So
it must show that it answers this letter: by To or Cc, by In-Reply-To or References, or
by its subject. `Reply.names_letter` weighs what is found here.
"""

import re
from typing import Final

from service.replies.lexicon import fold
from service.replies.mime import Headers
from service.replies.signals import MAX_SUBJECT, subject_of
from service.replies.values import Sent, Sign

#: Octets of a field that are looked through.
_MAX_FIELD: Final = 8 * 1024
_TOKEN: Final = re.compile(r"(?<![a-z2-7])[a-z2-7]{52}(?=@)")
_THREAD: Final = re.compile(r"<([a-z2-7]{26})\.")


def signs_of(headers: Headers, sent: Sent) -> tuple[Sign, ...]:
    """Return which fields name a letter of ours, and whether it is `sent`; never raises."""
    signs: list[Sign] = []
    token = sent.reply_address.rpartition("@")[0].rpartition("+")[2].lower()
    for name in ("to", "cc"):
        value = _all(headers, name)
        if (token and f"{token}@" in value) or _TOKEN.search(value):
            signs.append((name, bool(token) and f"{token}@" in value))
    for name in ("in-reply-to", "references"):
        threads = _THREAD.findall(_all(headers, name))
        if sent.thread and threads:
            signs.append((name, sent.thread in threads))
    subject = fold(sent.subject[:MAX_SUBJECT])
    if subject and subject in subject_of(headers):
        signs.append(("subject", True))
    return tuple(signs)


def _all(headers: Headers, name: str) -> str:
    return " ".join(value[:_MAX_FIELD] for value in headers.all(name)).lower()
