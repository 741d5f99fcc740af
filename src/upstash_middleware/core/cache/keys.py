"""Cache keys (RFC 9111 §2, §4.1): the names of resources, variants and epochs on Redis."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from msgspec import Struct

from upstash_middleware.core.cache.directives import members
from upstash_middleware.messages import LONGEST_VALUE, PATH_SAFE, normal_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from upstash_middleware.core.cache.rules import CacheRule, Profile
    from upstash_middleware.messages import Headers, HTTPRequest

_LONGEST = 1024
"""Characters of a URL, origin or tag in a key; of a longer one the key has the digest."""


class Names(Struct, frozen=True):
    """The cache's keys under one prefix."""

    prefix: str

    def resource(self, origin: str, url: str, version: str = "", root_path: str = "") -> str:
        """Return ``B``, the key of a resource's stored response or variant index.

        Each version of the application has its own keys; a version contains no slash, so that it
        cannot look like an origin. Epochs are shared by all versions, so that a purge reaches each.

        ``root_path``, the prefix under which the application is mounted, is part of the key because
        a URL names different pages under different prefixes, and a client may be able to choose
        one: gunicorn reads SCRIPT_NAME from a header field.
        """
        of = f"{version}:" if version else ""
        below = f"[{_bounded(quote(root_path, safe=PATH_SAFE))}]" if root_path else ""
        return f"{self.prefix}:cache:entry:{of}{below}{_bounded(origin)}{_bounded(url)}"

    def epochs(self, url: str, tags: Iterable[str]) -> tuple[str, ...]:
        """Return the keys of the epochs of a URL: ``A``, ``U``, ``G``, and each ``T``."""
        return (self.everything, self.url(url), self.any_tag, *map(self.tag, tags))

    @property
    def everything(self) -> str:
        """The key of ``A``, the epoch of everything."""
        return f"{self.prefix}:cache:epoch:all"

    def url(self, url: str) -> str:
        """Return ``U``, the key of a URL's epoch.

        It contains neither scheme nor host, so that ``purge("/products/7")`` works from anywhere, a
        worker that serves no requests included, and purges the page under each of its host names.
        """
        return f"{self.prefix}:cache:epoch:url:{_bounded(url)}"

    @property
    def any_tag(self) -> str:
        """The key of ``G``, the epoch that changes with each tag's."""
        return f"{self.prefix}:cache:epoch:tags"

    def tag(self, tag: str) -> str:
        """Return ``T``, the key of a tag's epoch."""
        return f"{self.prefix}:cache:epoch:tag:{_bounded(tag)}"


def _bounded(text: str) -> str:
    # '#' is escaped in URLs, so neither a URL nor a variant's key can look like a digest.
    return text if len(text) <= _LONGEST else f"#{sha256(text.encode()).hexdigest()}"


def keyed(key: str, selected: str, secret: bytes) -> str:
    """Return a key narrowed by the values that select a response.

    That may contain cookies or credentials, so only a keyed hash of it is written to Redis.
    """
    digest_key = secret if len(secret) <= 64 else sha256(secret).digest()
    return f"{key}#{blake2b(selected.encode(), digest_size=16, key=digest_key).hexdigest()}"


# --- URLs ---------------------------------------------------------------------------------------

# Every byte that may occur in a query is left as it is: only the application knows which spellings
# are equivalent. What may not occur (space, '#', beyond ASCII) is escaped.
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~[]{}|^\\`\"<>"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def url_of(request: HTTPRequest, rule: CacheRule) -> str:
    """Return a request's path and query, normalised: what a purge of its URL names."""
    return url_text(request.raw_path, normal_query(request.query, rule))


def url_text(path: str, query: str) -> str:
    """Return a normalised path and a query as they are in keys."""
    return f"{path}?{quote(query, safe=_QUERY_SAFE)}" if query else path


def urls_to_purge(text: str, rules: Iterable[CacheRule]) -> list[str]:
    """Return what ``url_of`` returns for a request to this URL or path under any of the rules.

    A URL may begin with the prefix under which the application is mounted, which the paths of
    rules do not have; so a rule counts if it covers any end of the path. Raises ValueError for
    text that is neither a URL nor a path.
    """
    if text.startswith("/"):
        path, _, query = text.partition("#")[0].partition("?")
    else:
        parts = urlsplit(text)
        if parts.scheme not in _DEFAULT_PORTS or not parts.netloc:
            raise ValueError(
                f"cannot purge {text!r}: it should be a path such as '/products/7', or a whole URL "
                "with http or https"
            )
        path, query = parts.path or "/", parts.query
    path = normal_path(path)
    if not query:
        return [url_text(path, query)]
    covering = (rule for rule in rules if rule.pattern.matches_end(unquote(path)))
    queries = [query, *(normal_query(query, rule) for rule in covering)]
    return list(dict.fromkeys(url_text(path, each) for each in queries))


def normal_query(query: str, rule: CacheRule) -> str:
    """Return a raw query with the parameters that the rule keeps, in the rule's order.

    Their spelling is not changed: only the application knows what their values mean.
    """
    if rule.keep_query is None and not rule.ignore_query and not rule.sort_query:
        return query
    if len(query) > LONGEST_VALUE:  # the work per request is bounded
        return query
    kept = []
    for part in filter(None, query.split("&")):
        name = unquote_plus(part.partition("=")[0])
        if rule.keep_query is not None and not _matches(name, rule.keep_query):
            continue
        if not _matches(name, rule.ignore_query):
            # Names that frameworks may read as the same one are not sorted.
            kept.append((name if name.isascii() and "%" not in name else "", part))
    if rule.sort_query:
        kept.sort(key=lambda pair: pair[0])  # not by value: its order may mean something
    return "&".join(part for _, part in kept)


def drops_parameters(query: str, rule: CacheRule) -> bool:
    """Whether a raw query has parameters that the rule does not keep, empty ones included."""
    kept = normal_query(query, rule)
    return bool(query) and query.count("&") + 1 > (kept.count("&") + 1 if kept else 0)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def origin_of(scheme: str, host: str) -> str:
    """Return scheme and authority without the scheme's default port (RFC 9110 §4.2.3)."""
    return origin_as_sent(scheme, host.removesuffix(_DEFAULT_PORTS.get(scheme, "-")))


def origin_as_sent(scheme: str, host: str) -> str:
    """Return scheme and authority, with the port as sent: applications put it into links."""
    authority = quote(host, safe=":[]") if len(host) <= _LONGEST else _bounded(host)
    return f"{quote(scheme, safe='')}://{authority}"


# --- Selecting header fields (RFC 9111 §4.1) ----------------------------------------------------

# RFC 9111 §4.1 lets values of a selecting field match as far as the field's definition says that
# they mean the same: in a list, white space around commas and empty members (RFC 9110 §5.6.1). In
# any other field a comma has no meaning: "https://a.example," is not "https://a.example".


class ListField(NamedTuple):
    """Whether case, and the order of its members, make no difference to a list-valued field."""

    case: bool
    order: bool


LIST_FIELDS: Mapping[str, ListField] = {
    # RFC 9110 §12.5.1; the value of a media type's parameter may depend on case.
    "accept": ListField(case=False, order=True),
    "accept-charset": ListField(case=True, order=True),  # RFC 9110 §12.5.2, §8.3.2
    "accept-encoding": ListField(case=True, order=True),  # RFC 9110 §12.5.3, §8.4.1
    "accept-language": ListField(case=True, order=True),  # RFC 9110 §12.5.4, RFC 4647 §2
    "access-control-request-headers": ListField(case=True, order=True),  # names: Fetch §3.3.3
    "cache-control": ListField(case=False, order=True),  # RFC 9111 §5.2
    "prefer": ListField(case=False, order=False),  # RFC 7240 §2: of a repeated one the first counts
    "te": ListField(case=True, order=True),  # RFC 9110 §10.1.4
    "via": ListField(case=False, order=False),  # RFC 9110 §7.6.3: the way that a message took
}

# Clients spell Accept-Encoding in many ways, and a server has few codings: a response is stored for
# all clients that accept its coding. RFC 9110 §8.4.1.

CODINGS = frozenset(
    {
        "br",  # RFC 7932; servers compress text with it
        "deflate",  # zlib; rarely used, but nearly every client names it
        "gzip",  # what each compression middleware can do
        "zstd",  # RFC 8878; newer servers
    }
)

_BY_CODINGS = "accept-encoding="
_WEIGHT = re.compile(r" ?q=(?:1(?:\.0{0,3})?|0\.(?!0{1,3}\Z)[0-9]{1,3})")
_LONGEST_ACCEPT_ENCODING = 256


def selected_values(fields: Iterable[str], headers: Headers, profile: Profile) -> str:
    """Return a request's values of selecting header fields as one text.

    An absent field differs from an empty one, and different values never make the same text. In
    profile ``safe`` two values are the same only if no application can distinguish them; otherwise
    values are normalised as far as their definitions allow.
    """
    return "\n".join([_selected(name, headers, profile) for name in sorted(set(fields))])


def _selected(selector: str, headers: Headers, profile: Profile) -> str:
    name, by_codings, codings = selector.partition("=")
    lines = headers.lines(name)
    if not lines:
        return name
    if by_codings and len(lines) == 1 and (accepted := accepted_codings(lines[0])) is not None:
        if not accepted:
            return f"{name}=identity"
        # A client that accepts gzip could get it even if no such response is stored yet.
        return f"{name}={','.join(sorted(accepted & {'gzip', *codings.split(',')}))}"
    # The repr of a list of texts is one line, and is different for each list.
    return f"{name}:{_normalised(name, lines) if profile.normalises else lines!r}"


def _normalised(name: str, lines: list[str]) -> list[str]:
    """Return the lines of a field combined and normalised as its definition allows."""
    if (field := LIST_FIELDS.get(name)) is None or sum(map(len, lines)) > LONGEST_VALUE:
        return [", ".join(lines)]
    values = [
        # Without white space around parameters (RFC 9110 §5.6.6).
        ";".join([part.strip(" \t") for part in member.split(";")]) if '"' not in member else member
        for member in members(lines)
    ]
    if field.case:
        values = [value.lower() for value in values]
    return sorted(values) if field.order else values


def selector_of_codings(headers: Headers, content_encoding: str) -> str:
    """Return how a response with ``Vary: Accept-Encoding`` is selected in profile ``safe``.

    By which of the codings that stored responses have a client accepts: ``accept-encoding=gzip``.
    By the whole field if the response has a coding that was not requested.
    """
    coding = content_encoding.strip().lower()
    if coding in {"", "identity"}:
        return "accept-encoding="
    lines = headers.lines("accept-encoding")
    accepted = accepted_codings(lines[0]) if len(lines) == 1 else None
    if coding in (CODINGS if accepted is None else accepted):
        return f"accept-encoding={coding}"
    return "accept-encoding"


def merged_selectors(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """Return the selectors of both, with those of Accept-Encoding merged into one."""
    merged = {*one, *other}
    by_codings = [selector for selector in merged if selector.startswith(_BY_CODINGS)]
    if len(merged) > 1 and by_codings:
        merged.difference_update(by_codings)
        if "accept-encoding" not in merged:
            listed = ",".join(selector.removeprefix(_BY_CODINGS) for selector in by_codings)
            merged.add(_BY_CODINGS + ",".join(sorted({*listed.split(",")} - {""})))
    return tuple(sorted(merged))


def accepted_codings(line: str) -> frozenset[str] | None:
    """Return the codings named by an Accept-Encoding, None unless all applications agree on it.

    They do not all know weights of zero, asterisks or capital letters.
    """
    return _accepted_codings(line) if len(line) <= _LONGEST_ACCEPT_ENCODING else None


@lru_cache(maxsize=256)
def _accepted_codings(line: str) -> frozenset[str] | None:
    codings = set()
    for member in line.split(","):
        coding, weighted, weight = member.strip(" ").partition(";")
        if coding not in CODINGS and coding != "identity":
            return None
        if weighted and not _WEIGHT.fullmatch(weight):
            return None
        codings.add(coding)
    return frozenset(codings - {"identity"})


# --- Cookies ------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# A quoted value that does not end before the next semicolon.
_OPEN_QUOTE = re.compile(r'[ \t]*+"(?:[^"\\]|\\.)*+\\?+\Z', re.DOTALL)


def selected_cookies(names: Collection[str], headers: Headers) -> str | None:
    """Return a request's cookies of these names as one text, independent of the names' order.

    None if two parsers could find different cookies of these names. Starlette and Django split the
    field at each semicolon, strip all white space, and use the last cookie of a name. Werkzeug
    strips spaces and tabs, allows semicolons in quoted values, and uses the first. So the text
    contains every cookie of a name, as it was sent.
    """
    chosen: dict[str, list[str]] = {}
    for line in headers.lines("cookie"):
        for pair in line.split(";"):
            name, equals, value = pair.partition("=")
            bare = name.strip()
            if not equals and not bare:
                continue
            if _OPEN_QUOTE.match(value):
                return None
            if bare in names:
                if not equals or name.lstrip(" \t") != bare:
                    return None
                chosen.setdefault(bare, []).append(value)
            elif not _TOKEN.fullmatch(bare):
                return None
    return f"cookies:{sorted(chosen.items())!r}"


def chosen_cookies(names: Collection[str], headers: Headers) -> str:
    """Return a request's Cookie field with only the cookies of these names, as they were sent."""
    pairs = [pair for line in headers.lines("cookie") for pair in line.split(";")]
    return "; ".join(pair.lstrip() for pair in pairs if pair.partition("=")[0].strip() in names)
