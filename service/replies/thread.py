"""Which letter a mail answers, by what its sender's program wrote.

A mail that its approver really wrote, and signed, may have been an answer to something
else: whoever has a copy of it and knows a reply address could send it there again. So
it must show that it answers this letter: by To or Cc, by In-Reply-To or References, by
what it quotes, or by its subject. `Reply.names_letter` weighs what is found here.

Keys are changed, and what they signed changes with them: of an address and of a link only
the part that names the ballot is compared, so that a letter from before is known again.
"""

import re
from collections.abc import Iterator
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from service.replies.lexicon import fold
from service.replies.mime import MAX_HTML, Headers, Part
from service.replies.signals import MAX_SUBJECT, subject_of
from service.replies.values import Sent, Sign

#: Octets of a field that are looked through, and of a Date.
_MAX_FIELD: Final = 8 * 1024
_MAX_DATE: Final = 200
#: What is older than the question by more does not answer it; clocks are wrong by less.
_MAX_AGE: Final = timedelta(days=1)
#: A reply address's token, of whose characters the 3rd to the 27th are bits of the ballot's key alone.
#: Whoever rewrites links encodes what stands around it (``+``, ``:``, ``@``), and the next one that too.
_TOKEN: Final = re.compile(
    r"(?:(?<![a-z2-7])|(?<=[%5]2b)|(?<=[%5]3a))[a-z2-7]{2}([a-z2-7]{25})[a-z2-7]{25}(?=@|%(?:25)*40)"
)
#: A link's payload; no character of it is ever encoded. One rewriter of links makes ``_`` of ``/``.
_LINK: Final = re.compile(r"decide(?:[/_]|%(?:25)*2[Ff])([A-Za-z0-9]{38})(?![A-Za-z0-9])")
_THREAD: Final = re.compile(r"<([a-z2-7]{26})\.")

#: What programs put before a subject that is answered or handed on, in the languages that are read.
_PREFIXES: Final = (
    "re,rép,ref,aw,antw,antwort,sv,vs,vast,odp,odg,ynt,yan,r,ri,rif,rv,res,resp,ats,atb,отв,отг,відп,ha,на,απ,"
    "απάντηση,σχετ,vá,bls,tl,trả lời,ตอบ,ตอบกลับ,השב,תגובה,رد,الرد,پاسخ,回复,答复,回覆,答覆,返信,回信,회신,"
    "답장,fwd,fw,wg,wtr,tr,i,enc,encam,doorst,vb,vl,vs,pd,prep,ilt,továbbítás,trs,posr,edasi,par,persiųsta,пересл,"
    "препр,πρθ,fs,chuyển tiếp,ส่งต่อ,הועבר,إعادة توجيه,ارسال,转发,轉寄,轉發,転送,전달"
)
#: What gateways put there: it is from outside, suspicious, or was encrypted on its way.
_TAGS: Final = (
    "ext,extern,external,externe,externo,externa,esterno,esterna,zewnętrzny,zewnętrzna,внешний,внешнее,外部,외부,"
    "external email,external mail,external message,external sender,spam,suspicious,suspected spam,junk,"
    "caution,secure,encrypt,encrypted"
)


def _any_of(words: str) -> str:
    return "|".join(sorted((re.escape(fold(word)) for word in words.split(",")), key=len, reverse=True))


_BEFORE: Final = re.compile(
    rf"(?:(?:{_any_of(_PREFIXES)})(?: ?[\[(]\d{{1,3}}[\])]|[*^]?\d{{1,3}})? ?:"
    rf"|[\[(*]{{1,3}} ?(?:{_any_of(_TAGS)}) ?[\])*]{{1,3}} ?:?|(?:{_any_of(_TAGS)}) ?:) ?"
)


def signs_of(mail: Part, sent: Sent) -> tuple[Sign, ...]:
    """Return what of a mail names a letter of ours, and whether it is `sent`; never raises."""
    signs: list[Sign] = []
    ours = set(_TOKEN.findall(sent.reply_address.lower()))
    for name in ("to", "cc"):
        ids = _TOKEN.findall(_all(mail.headers, name))
        if ids:
            signs.append((name, not ours.isdisjoint(ids)))
    for name in ("in-reply-to", "references"):
        threads = _THREAD.findall(_all(mail.headers, name))
        if sent.thread and threads:
            signs.append((name, sent.thread in threads))
    if _is_elsewhere(mail.headers) and not {("to", True), ("cc", True), ("in-reply-to", True)} & set(signs):
        signs.append(("elsewhere", False))
    ours |= set(_LINK.findall(sent.link))
    if quoted := list(_quoted(mail)):
        signs.append(("body", not ours.isdisjoint(quoted)))
    if _is_older(mail.headers, sent):
        signs.append(("date", False))
    if _is_subject(subject_of(mail.headers), fold(sent.subject[:MAX_SUBJECT])):
        signs.append(("subject", True))
    return tuple(signs)


def _all(headers: Headers, name: str) -> str:
    return " ".join(value[:_MAX_FIELD] for value in headers.all(name)).lower()


def _is_elsewhere(headers: Headers) -> bool:
    """Tell whether a mail says to whom it goes and what it answers.

    Where neither is ours it is to somebody else in the same thread, whose subject and References
    it has all the same: a "Yes" to the requester's question back.
    """
    return "@" in _all(headers, "to") + _all(headers, "cc") and "@" in _all(headers, "in-reply-to")


def _quoted(mail: Part) -> Iterator[str]:
    """Yield what names letters of ours in the mail's text: quotations hold their links and addresses."""
    room = MAX_HTML  # for all of it: no mail that decides has more
    for part in mail.walk():
        if room > 0 and part.content_type in {"text/plain", "text/html"} and not part.attached:
            text = part.text()[0][:room]
            room -= len(text)
            yield from _LINK.findall(text)
            yield from _TOKEN.findall(text.lower())


def _is_older(headers: Headers, sent: Sent) -> bool:
    """Tell whether the mail says that it was written before there was anything to answer."""
    try:
        date = parsedate_to_datetime(headers.first("date")[:_MAX_DATE])
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return sent.made is not None and date < sent.made - _MAX_AGE
    except (TypeError, ValueError, IndexError, OverflowError):  # no date
        return False


def _is_subject(subject: str, ours: str) -> bool:
    """Tell whether a folded subject is `ours`, but for what programs and gateways put before it."""
    while subject != ours and (before := _BEFORE.match(subject)):
        subject = subject[before.end() :]
    return bool(ours) and subject == ours
