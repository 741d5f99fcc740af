"""Cache keys (RFC 9111 §2, §4.1): what names a resource, a variant, an epoch; text only."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from upstash_middleware.core.cache.fields import members, split_list
from upstash_middleware.core.cache.query import normal_query
from upstash_middleware.messages import normal_path
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.cache.profiles import Profile
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.messages import Headers, Request

# Every byte that may stand in a query stays as it is: which spellings of one are equivalent,
# only the application knows. What is not allowed there (space, '#', beyond ASCII) is escaped.
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~[]{}|^\\`\"<>"
_LONGEST = 1024
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

# Selecting header fields that are lists without weight in their order, of values that compare
# without case (RFC 9110 §12.5), so that more than blanks can be normalised.
_PREFERENCES = frozenset({"accept", "accept-charset", "accept-encoding", "accept-language"})
# Fields that are no comma-separated lists: a comma in them is text.
_SINGLE_VALUED = frozenset(
    {"authorization", "cookie", "date", "if-modified-since", "referer", "user-agent"}
)
_LONGEST_REMEMBERED = 256
_AROUND_WEIGHT = re.compile(r"[ \t]*;[ \t]*")


def url_of(request: Request, rule: CacheRule) -> str:
    """Return a request's path and query, normalised: what a purge of its URL names."""
    return _url(request.raw_path, normal_query(request.query, rule))


def urls_to_purge(text: str, rules: Iterable[CacheRule]) -> list[str]:
    """Return what ``url_of`` gives for a request to this URL or path, under any of the rules.

    Raises ValueError for text that is neither.
    """
    path, query = _path_and_query(text)
    covering = (rule for rule in rules if rule.covers(unquote(path)))
    queries = [query, *(normal_query(query, rule) for rule in covering)]
    return list(dict.fromkeys(_url(path, each) for each in queries))


def _path_and_query(text: str) -> tuple[str, str]:
    if text.startswith("/"):
        path, _, query = text.partition("#")[0].partition("?")
        return normal_path(path), query
    parts = urlsplit(text)
    if parts.scheme not in _DEFAULT_PORTS or not parts.netloc:
        raise ValueError(
            f"cannot purge {text!r}: it should be a path such as '/products/7', or a whole URL "
            "with http or https"
        )
    return normal_path(parts.path or "/"), parts.query


def _url(path: str, query: str) -> str:
    return f"{path}?{quote(query, safe=_QUERY_SAFE)}" if query else path


def origin_of(scheme: str, host: str) -> str:
    """Return scheme and authority without the scheme's own port."""
    return f"{scheme}://{quote(host.removesuffix(_DEFAULT_PORTS.get(scheme, '-')), safe=':[]')}"


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the cache's keys under one prefix."""

    prefix: str

    def resource(self, origin: str, url: str, version: str = "") -> str:
        """Return ``B``: the key of a resource's stored response, or of its stub.

        A version of the application has its own; it holds no slash, so that none looks like an
        origin. Epochs are the same for all versions: a purge is for each.
        """
        of = f"{version}:" if version else ""
        return f"{self.prefix}:cache:entry:{of}{_bounded(origin)}{_bounded(url)}"

    def epochs(self, url: str, tags: Iterable[str]) -> tuple[str, ...]:
        """Return the keys of the epochs that bear on a URL: ``A``, ``U``, ``G``, and each ``T``."""
        return (self.everything, self.url(url), self.any_tag, *map(self.tag, tags))

    @property
    def everything(self) -> str:
        """The key of ``A``, the epoch of everything."""
        return f"{self.prefix}:cache:epoch:all"

    def url(self, url: str) -> str:
        """Return ``U``: the key of a URL's epoch.

        It is without scheme and host, so that ``purge("/products/7")`` works from anywhere, a
        command line or a worker that serves no requests included, and purges the page under
        every host name that it is reached by. That a purge takes more than one host's page
        costs a render; one that missed a host would leave the old page there.
        """
        return f"{self.prefix}:cache:epoch:url:{_bounded(url)}"

    @property
    def any_tag(self) -> str:
        """The key of ``G``, the epoch that moves with every tag's."""
        return f"{self.prefix}:cache:epoch:tags"

    def tag(self, tag: str) -> str:
        """Return ``T``: the key of a tag's epoch."""
        return f"{self.prefix}:cache:epoch:tag:{_bounded(tag)}"


def _bounded(text: str) -> str:
    # '#' is escaped in URLs, so no URL can look like a digest; nor can a variant's key, below.
    if len(text) <= _LONGEST:
        return text
    return f"#{sha256(text.encode()).hexdigest()}"


def keyed(key: str, selected: str, secret: bytes) -> str:
    """Return a key narrowed to what was selected by: a variant, chosen cookies.

    That may be cookies or credentials, so only a keyed hash of it is ever written.
    """
    digest_key = secret if len(secret) <= 64 else sha256(secret).digest()
    digest = blake2b(selected.encode(), digest_size=16, key=digest_key).hexdigest()
    return f"{key}#{digest}"


def selected_values(fields: Iterable[str], headers: Headers, profile: Profile) -> str:
    """Return a request's values of selecting header fields as one text (§4.1).

    An absent field is told from an empty one, and no two sets of values make the same text.
    Names and values are normalised as far as their definitions allow.
    """
    return "\n".join([_selected(name, headers, profile) for name in sorted(set(fields))])


def _selected(name: str, headers: Headers, profile: Profile) -> str:
    lines = headers.lines(name)
    if not lines:
        return name
    if name in _SINGLE_VALUED:
        return f"{name}:{', '.join(lines)}"
    if name not in _PREFERENCES:
        return f"{name}:{','.join(members(lines))}"
    values = [value for line in lines for value in _preferences(line)]
    return f"{name}:{','.join(sorted(values) if profile.ignores_order else values)}"


def _preferences(line: str) -> tuple[str, ...]:
    """Return the members of a list of preferences as far normalised as they may be."""
    return _normal(line) if len(line) <= _LONGEST_REMEMBERED else _normal.__wrapped__(line)


@lru_cache(maxsize=512)  # there are not many browsers, and each sends the same every time
def _normal(line: str) -> tuple[str, ...]:
    return tuple([_AROUND_WEIGHT.sub(";", value).lower() for value in split_list(line)])


def selected_cookies(names: Iterable[str], headers: Headers) -> str:
    """Return a request's cookies of these names as one text, whatever their order was."""
    pairs = [
        pair.strip(" \t").partition("=")
        for line in headers.lines("cookie")
        for pair in line.split(";")
    ]
    chosen = [f"{name}={value}" for name in names for key, _, value in pairs if key == name]
    return "\n".join(["cookies", *chosen])
