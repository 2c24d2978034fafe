"""Reading replies: a mail's bytes into a decision, a question back, or silence.

Two promises: no mail decides what its writer did not write, and no honest reply is
lost in silence. Whatever is not plainly a decision is asked back.

::

    reading   read_reply: the order of the steps
    mime      bounds first, then the parts
    signals   why a mail is neither acted on nor answered
    sender    exactly one From
    thread    which letter it answers
    markup    HTML as lines
    newtext   what is new in them
    verdict   what one line says
    objections  what the lines below it say against it
    lexicon   the words, from languages/*.toml

Nothing here does I/O but reading its own word lists, once.
"""

from service.replies.mime import MAX_MESSAGE
from service.replies.reading import MAX_COMMENT, MAX_READ, read_reply
from service.replies.values import Bounce, Doubt, Ignored, Reading, Reason, Reply, Sent, Unverified, Why

__all__ = [
    "MAX_COMMENT",
    "MAX_MESSAGE",
    "MAX_READ",
    "Bounce",
    "Doubt",
    "Ignored",
    "Reading",
    "Reason",
    "Reply",
    "Sent",
    "Unverified",
    "Why",
    "read_reply",
]
