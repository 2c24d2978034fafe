"""Which letter a mail answers, by what its sender's program wrote.

A mail that its approver really wrote, and signed, may have been an answer to something
else: whoever has a copy of it and knows a reply address could send it there again. So
it must show that it answers this letter: by To or Cc, by In-Reply-To or References, or
by its subject. The first of these that names a letter of ours decides.
"""

import re
from typing import Final

from service.replies.lexicon import fold
from service.replies.mime import Headers
from service.replies.signals import MAX_SUBJECT, subject_of
from service.replies.values import Sent

#: Octets of a field that are looked through.
_MAX_FIELD: Final = 8 * 1024
_TOKEN: Final = re.compile(r"(?<![a-z2-7])[a-z2-7]{52}(?=@)")
_THREAD: Final = re.compile(r"<([a-z2-7]{26})\.")


def names_letter(headers: Headers, sent: Sent) -> bool:
    """Tell whether the header shows that the letter `sent` is answered; never raises."""
    ours = sent.reply_address.rpartition("@")[0].rpartition("+")[2].lower()
    recipients = _all(headers, "to", "cc")
    if ours and f"{ours}@" in recipients:
        return True
    if _TOKEN.search(recipients):
        return False
    threads = _THREAD.findall(_all(headers, "in-reply-to", "references"))
    if sent.thread and threads:
        return sent.thread in threads
    subject = fold(sent.subject[:MAX_SUBJECT])
    return bool(subject) and subject in subject_of(headers)


def _all(headers: Headers, *names: str) -> str:
    return " ".join(value[:_MAX_FIELD] for name in names for value in headers.all(name)).lower()
