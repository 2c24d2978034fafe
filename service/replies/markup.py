"""HTML as the lines that its reader saw, with what is quoted told apart.

Written for mail and for hostile input: the standard library's parser takes 35
seconds for 63 KB of ``<a <a <a`` on Python 3.13.0, this takes linear time (possessive
patterns, no look back). A tag that never ends swallows the rest, as in browsers.
"""

import html
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

#: A line of its own in place of quoted text, and the line below which all is quoted.
#: NUL is taken out of every text before, so that nobody else can write these.
QUOTED: Final = ">"
CUT: Final = "\0cut"
#: Stands where text is struck through or hardly to be seen, so that no such line is ever a phrase.
STRUCK: Final = "\0struck"
#: The last line of a text that goes on past a bound.
UNREAD: Final = "\0unread"

#: Characters of HTML read once comments, styles and scripts are gone.
MAX_MARKUP: Final = 64 * 1024
#: How many times as long it may be with them.
_STYLED: Final = 8

#: "<!-->" is one already, and "--!>" ends one: what follows is shown.
_COMMENT: Final = re.compile(r"<!--(?:-?>|.*?(?:--!?>|\Z))", re.DOTALL)
_UNREAD: Final = re.compile(r"<(style|script|title)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG: Final = re.compile(
    r"""<(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+')|=)*+)>""",
)
#: "<!...", "<?..." and "</" without a name end at the next ">"; a tag's name without its end, never.
_BOGUS: Final = re.compile(r"<[!?]|</[^a-zA-Z]")
_UNENDING: Final = re.compile(r"</?[a-zA-Z]")
_ATTRIBUTE: Final = re.compile(
    r"""(?:^|[\s"'/])(id|class|style|name|alt|type|cite)\s*=\s*("[^"]*"|'[^']*'|[^\s>]*)""", re.IGNORECASE
)

_VOID: Final = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
#: Cells are not among these: "approve" in one and "not" in the next is one line to its reader.
_BLOCK: Final = {
    "address", "article", "aside", "blockquote", "body", "br", "center", "dd", "div", "dl", "dt", "fieldset",
    "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main", "ol", "p",
    "pre", "section", "table", "tbody", "tr", "ul",
}  # fmt: skip
#: Below which their reader sees a blank line.
_APART: Final = {"p", "table", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6"}
_SPACED: Final = {"td", "th", "button", "option"}
_BY_NAME: Final = {
    **dict.fromkeys(("s", "strike", "del"), "strike"),
    # What is in these is shown by some programs and not by others.
    **dict.fromkeys(("iframe", "noscript", "object", "select", "svg", "template", "textarea"), "strike"),
    "pre": "verbatim",
}

_HIDING: Final = re.compile(
    r"display\s*:\s*none|mso-hide\s*:\s*all|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])"
)
#: Or not to be seen in some mail programs: whether its writer meant it can't be told.
_STRIKING: Final = re.compile(
    r"line-through|opacity\s*:\s*(?:0?\.)?0++(?![.\d])|color\s*:\s*transparent|font-size\s*:\s*[01]p[xt]"
    r"|(?<![\w-])(?:max-)?(?:height|width)\s*:\s*0(?![.\d])|(?:left|top|indent)\s*:\s*-\d{3}"
)
_CSS_COMMENT: Final = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_QUOTED_VALUE: Final = re.compile(r""""[^"]*"|'[^']*'""")
#: How the button that moves text to the right writes its ``<blockquote>``; a quotation has a border.
_INDENTING: Final = re.compile(r"margin|border")
_BORDER: Final = re.compile(r"border(?:-left)?\s*+:\s*+(?!none|0)")
#: The rule that Outlook for Windows draws above From, Sent, To and Subject.
_OUTLOOK_RULE: Final = re.compile(r"border-top\s*:\s*solid\s+#(?:e1e1e1|b5c4df)")


class Clients(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How mail programs mark what is not new: the ids, classes and names of ``clients.toml``."""

    quotes: frozenset[str]
    perhaps: frozenset[str]
    cuts: frozenset[str]
    signatures: frozenset[str]


@cache
def clients() -> Clients:
    """Return the marks of all mail programs; read from the package once."""
    return msgspec.toml.decode(files(__package__).joinpath("clients.toml").read_bytes(), type=Clients)


def lines_of(parts: Iterable[tuple[str, bool]]) -> list[str]:
    """Return the lines of all `parts` of a mail, each its markup and whether that is all of it.

    `QUOTED` stands for each quotation, and `CUT` last where the rest of a part is one. Where
    one is not whole, or they are over `MAX_MARKUP` together, `UNREAD` stands for the last
    line: it may say more than is seen of it.
    """
    lines: list[str] = []
    room = MAX_MARKUP
    for given, whole in parts:
        if room <= 0:
            return [*lines, UNREAD]
        markup = _UNREAD.sub(" ", _COMMENT.sub("", given.replace("\0", "")))
        lines += _lines(markup[:room], whole=whole and len(markup) <= room)
        # Styles take time too.
        room -= max(len(markup), len(given) // _STYLED)
    return lines


def _lines(markup: str, *, whole: bool) -> list[str]:
    page = _Page()
    position = 0
    while not page.cut and (start := markup.find("<", position)) >= 0:
        page.write(_unescaped(markup[position:start]))
        if tag := _TAG.match(markup, start):
            page.tag(tag[2].lower(), tag[3], closing=bool(tag[1]))
            position = tag.end()
        elif _BOGUS.match(markup, start):
            end = markup.find(">", start)
            position = end + 1 if end >= 0 else len(markup)
        elif _UNENDING.match(markup, start):
            position = len(markup)
        else:
            page.write("<")
            position = start + 1
    if not page.cut:
        page.write(_unescaped(markup[position:]))
    page.end_line()
    return page.lines if whole or page.cut else [*page.lines[:-1], UNREAD]


class _Page:
    """Lines as they grow, and the elements that are open around their end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cut = False
        self._text: list[str] = []
        self._open: list[tuple[str, str]] = []
        self._count: dict[str, int] = {}
        #: How many open elements have each effect.
        self._effects = dict.fromkeys(("quote", "hide", "strike", "verbatim", ""), 0)

    @property
    def _unseen(self) -> bool:
        return bool(self._effects["quote"] or self._effects["hide"])

    def write(self, text: str) -> None:
        """Add `text` to the line; its line breaks are spaces but in ``<pre>``."""
        if self._unseen or not text:
            return
        if self._effects["strike"] and text.strip():
            self._text.append(STRUCK)
        first, *rest = text.split("\n") if self._effects["verbatim"] else [text]
        self._text.append(first)
        for line in rest:
            self.end_line(broken=True)
            self._text.append(line)

    def end_line(self, *, broken: bool = False) -> None:
        """Begin a new line where there is text on this one, or it was `broken`: a no-break space is text."""
        if self._unseen:
            return
        text = "".join(self._text)
        if broken or text.strip(" \t\r\n\f"):
            self.lines.append(" ".join(text.split()))
        self._text = []

    def tag(self, name: str, attributes: str, *, closing: bool) -> None:
        """Take a tag into account."""
        if name in _BLOCK:
            self.end_line(broken=name == "br")
        elif name in _SPACED:
            self.write(" ")
        if closing:
            self._close(name)
            if name in _APART and not self._unseen and self.lines[-1:] != [""]:
                self.lines.append("")
        elif name == "img":
            self.write(_pictogram(attributes))
        elif (effect := _effect(name, attributes)) == "cut":
            self._cut()
        elif name not in _VOID and not (attributes.endswith("/") and ":" in name):
            self._begin(name, effect)

    def _cut(self) -> None:
        if not self._unseen:
            self.end_line()
            self.lines.append(CUT)
            self.cut = True

    def _begin(self, name: str, effect: str) -> None:
        if effect == "quote" and not self._unseen:
            self.end_line()
            self.lines.append(QUOTED)
        self._open.append((name, effect))
        self._count[name] = self._count.get(name, 0) + 1
        self._effects[effect] += 1

    def _close(self, name: str) -> None:
        """Close the innermost `name` and what is open inside it; a stray end tag closes nothing."""
        while self._count.get(name):
            closed, effect = self._open.pop()
            self._count[closed] -= 1
            self._effects[effect] -= 1
            if closed == name:
                return


def _effect(name: str, attributes: str) -> str:
    """Return what an element does to its text: cut, quote, hide, strike, verbatim or nothing."""
    if effect := _BY_NAME.get(name):
        return effect
    given = _given(attributes) if "=" in attributes else {}
    # Outlook on the web puts x_ before the ids and classes of mail that it quotes.
    names = {n.removeprefix("x_") for key in ("id", "class", "name") for n in given.get(key, "").split()}
    names |= {f"name={n}" for n in given.get("name", "").split()}
    style = _CSS_COMMENT.sub("", given.get("style", ""))
    known = clients()
    marked = any(given.get(key) for key in ("class", "type", "cite")) or _BORDER.search(style)
    block = name == "blockquote"
    indented = block and not marked and _INDENTING.search(style)
    effects = {
        "cut": names & known.cuts or _OUTLOOK_RULE.search(style),
        "quote": names & known.quotes or (block and not indented),
        "hide": names & known.signatures or _HIDING.search(style),
        "strike": indented or names & known.perhaps or _STRIKING.search(style) or _hidden(attributes),
    }
    return next((effect for effect, holds in effects.items() if holds), "")


def _given(attributes: str) -> dict[str, str]:
    found = _ATTRIBUTE.finditer(attributes)
    return {match[1].lower(): _unescaped(match[2].strip("\"'")).lower() for match in found}


def _hidden(attributes: str) -> bool:
    return "hidden" in attributes.lower() and "hidden" in _QUOTED_VALUE.sub("", attributes).lower().split()


def _pictogram(attributes: str) -> str:
    """Return an image's text where it is an emoji: mail programs send those as images."""
    alt = _unescaped(_given(attributes).get("alt", ""))
    return alt if 0 < len(alt) <= 8 and not any(c.isalnum() or c.isascii() for c in alt) else ""  # noqa: PLR2004


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text) if "&" in text else text
    except ValueError:  # a character reference of more than 4,300 digits
        return text
