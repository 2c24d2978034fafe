"""Authentication-Results fields (RFC 8601), read strictly.

authres, the known parser, refuses what Microsoft 365 writes: no authserv-id, properties
without a type (``action=none``), ``compauth=pass reason=100``. This one reads them too, and
refuses the whole field where anything else breaks the grammar: a field that is read
in part is where a forged result hides. Linear in the field's length.
"""

import re
from dataclasses import dataclass
from typing import Final

from service.senders.domains import aligned, read_domain

#: Octets of one field; Microsoft 365 writes up to 3,000.
MAX_FIELD: Final = 16 * 1024
#: How deep comments may nest.
_MAX_DEPTH: Final = 20

_SPACE: Final = re.compile(r"[ \t\r\n]*+")
_IN_COMMENT: Final = re.compile(r"(?:[^()\\]|\\.)*+", re.DOTALL)
#: RFC 2045's token, of which authserv-ids and keywords are made.
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+._`{|}~^-]++")
_WORD: Final = re.compile(r"[A-Za-z0-9_-]++")
_QUOTED: Final = re.compile(r'"((?:[^"\\\r\n]|\\[^\r\n])*+)"')
#: A quoted local part goes on with its domain, and that is the end of it.
_DOMAIN: Final = re.compile(r"@[A-Za-z0-9._-]++")
_PLAIN: Final = re.compile(r'[^\s;()"\\]*+')


#: By method: the properties that tell whom a result is about, the first that there is.
_SIGNERS: Final = {"dkim": ("header.d", "header.i"), "spf": ("smtp.mailfrom",)}


class MalformedResults(Exception):  # noqa: D101 - never leaves this package
    pass


@dataclass(frozen=True, slots=True)
class Result:
    """One method's result, all in lower case; a property given twice is left out of `properties`."""

    method: str
    result: str
    properties: dict[str, str]


@dataclass(frozen=True, slots=True)
class Results:
    """One field. `authserv_id` is lower case, and None where the field has none, as Microsoft 365's."""

    authserv_id: str | None
    results: tuple[Result, ...]

    def of(self, method: str) -> tuple[Result, ...]:
        """Return every result of one method."""
        return tuple(result for result in self.results if result.method == method)


def read_results(value: bytes) -> Results:
    """Return the field whose value this is. Raises MalformedResults."""
    if len(value) > MAX_FIELD:
        raise MalformedResults(f"over {MAX_FIELD} octets")
    try:
        return _Scanner(value.decode("utf-8")).results()
    except UnicodeDecodeError as exc:
        raise MalformedResults("not UTF-8") from exc


def speaks_for(results: Results, domain: str) -> tuple[bool, str]:
    """Return whether these results authenticate mail from `domain`, with the evidence or the reason.

    DMARC decides where it has an opinion; where the domain publishes none, an aligned DKIM
    or SPF pass does.
    """
    # Microsoft 365's bestguesspass says that no policy is published.
    opinions = [found for found in results.of("dmarc") if found.result not in {"none", "bestguesspass"}]
    if opinions:
        (first, *others) = opinions
        if others:
            return False, "there are several DMARC results"
        if first.result != "pass":
            return False, f"DMARC: {first.result}"
        if _domain_in(first, "header.from") != domain:
            return False, "DMARC passes for another From"
        return True, f"dmarc=pass header.from={domain}"
    for method in _SIGNERS:
        for found in passed(results, method, domain):
            name, signer = _signer(found)
            return True, f"{method}=pass {name}={signer}"
    return False, f"neither DMARC, nor DKIM or SPF aligned with {domain}, passes"


def passed(results: Results, method: str, domain: str) -> list[Result]:
    """Return each pass of a method, dkim or spf, that is aligned with `domain`."""
    passes = [found for found in results.of(method) if found.result == "pass"]
    return [found for found in passes if (signer := _signer(found)[1]) and aligned(signer, domain)]


def _signer(found: Result) -> tuple[str, str | None]:
    """Return the property that tells whom a result is about, and the domain in it."""
    names = _SIGNERS[found.method]
    name = next((name for name in names if name in found.properties), names[0])
    return name, _domain_in(found, name)


def _domain_in(found: Result, name: str) -> str | None:
    return read_domain(found.properties.get(name, "").rpartition("@")[2])


class _Scanner:
    """Reads one field from left to right; `at` is where."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def results(self) -> Results:
        """Read the whole."""
        self.skip()
        authserv_id: str | None = self.quoted() if self.sees('"') else self.take(_TOKEN, "an authserv-id")
        self.skip()
        if self.sees("="):
            # No authserv-id: what was read is the first method.
            self.at, authserv_id = 0, None
            found = [self.result()]
        else:
            found = []
            if self.sees("1"):
                self.take(_TOKEN, "a version", only={"1"})
                self.skip()
        while self.at < len(self.text):
            self.expect(";")
            self.skip()
            if self.at == len(self.text):
                break
            if not self.none():
                found.append(self.result())
            elif found or self.at < len(self.text):
                raise MalformedResults("none among results")
        return Results(authserv_id.lower() if authserv_id else None, tuple(found))

    def result(self) -> Result:
        """Read ``method = result`` and what belongs to it, up to a semicolon or the end."""
        self.skip()
        method = self.take(_WORD, "a method").lower()
        self.skip()
        if self.accept("/"):
            self.skip()
            self.take(_TOKEN, "a version", only={"1"})
            self.skip()
        self.expect("=")
        self.skip()
        result = self.take(_WORD, "a result").lower()
        properties: dict[str, str] = {}
        twice = set()
        self.skip()
        while self.at < len(self.text) and not self.sees(";"):
            name, value = self.property()
            if name in properties:
                twice.add(name)
            properties[name] = value
        return Result(method, result, {name: properties[name] for name in properties if name not in twice})

    def property(self) -> tuple[str, str]:
        """Read ``type.name = value`` or ``name = value``."""
        name = self.take(_WORD, "a property").lower()
        self.skip()
        if self.accept("."):
            self.skip()
            name = f"{name}.{self.take(_WORD, 'a property').lower()}"
            self.skip()
        self.expect("=")
        self.skip()
        if self.sees('"'):
            value = self.quoted()
            domain = _DOMAIN.match(self.text, self.at)
            if domain:
                value, self.at = value + domain[0], domain.end()
        else:
            value = self.take(_PLAIN, "a value")
        if value and not value.isprintable():
            raise MalformedResults("a value that is not printable")
        ended = self.at == len(self.text) or self.text[self.at] in "; \t\r\n("
        if not ended:
            raise MalformedResults(f"no value at {self.at}")
        self.skip()
        return name, value.lower()

    def none(self) -> bool:
        """Read ``none``, by which a server says that it checked nothing, if it is there."""
        word = _WORD.match(self.text, self.at)
        if word is None or word[0].lower() != "none":
            return False
        before, self.at = self.at, word.end()
        self.skip()
        if self.sees("=") or self.sees("/"):
            self.at = before
            return False
        return True

    def quoted(self) -> str:
        """Read a quoted string."""
        match = _QUOTED.match(self.text, self.at)
        if match is None:
            raise MalformedResults(f"an unclosed quote at {self.at}")
        self.at = match.end()
        return re.sub(r"\\(.)", r"\1", match[1])

    def skip(self) -> None:
        """Skip blanks, folds and comments, which nest."""
        depth = 0
        while True:
            span = (_IN_COMMENT if depth else _SPACE).match(self.text, self.at)
            self.at = span.end() if span else self.at
            if self.accept("("):
                depth += 1
            elif depth and self.accept(")"):
                depth -= 1
            elif depth:
                raise MalformedResults("an unclosed comment")
            else:
                return
            if depth > _MAX_DEPTH:
                raise MalformedResults("comments nest too deep")

    def sees(self, mark: str) -> bool:
        """Whether `mark` comes next."""
        return self.text.startswith(mark, self.at)

    def accept(self, mark: str) -> bool:
        """Read `mark` if it comes next."""
        if not self.sees(mark):
            return False
        self.at += len(mark)
        return True

    def expect(self, mark: str) -> None:
        """Read `mark`, or refuse."""
        if not self.accept(mark):
            raise MalformedResults(f"no {mark} at {self.at}")

    def take(self, pattern: re.Pattern[str], what: str, only: set[str] | None = None) -> str:
        """Read what `pattern` matches here, or refuse."""
        match = pattern.match(self.text, self.at)
        if match is None or (only is not None and match[0] not in only):
            raise MalformedResults(f"no {what} at {self.at}")
        self.at = match.end()
        return match[0]
