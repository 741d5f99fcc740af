"""Cache keys (RFC 9111 §2): the names of resources, variants and epochs on Redis; also URLs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from msgspec import Struct

from upstash_middleware.core.cache.entries import group_of_tag
from upstash_middleware.messages import LONGEST_VALUE, PATH_SAFE, normal_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.messages import HTTPRequest

_MAX_TEXT_LENGTH = 1024
"""Characters of a URL, origin or tag in a key. Longer text is replaced by its digest."""


class Names(Struct, frozen=True):
    """The keys of the cache under one prefix."""

    prefix: str

    def resource(self, origin: str, url: str, version: str = "", root_path: str = "") -> str:
        """Return ``B``, the key of a resource's stored response or variant index.

        Each version of the application has its own keys. A version contains no slash, so it cannot
        be mistaken for an origin. All versions share epochs, so a purge affects all of them.

        ``root_path`` is the prefix under which the application is mounted. It is part of the key,
        because a URL can have different pages under different prefixes, and because a client may be
        able to choose it: gunicorn reads SCRIPT_NAME from a header field.
        """
        of = f"{version}:" if version else ""
        below = f"[{_digest_if_long(quote(root_path, safe=PATH_SAFE))}]" if root_path else ""
        return (
            f"{self.prefix}:cache:entry:{of}{below}{_digest_if_long(origin)}{_digest_if_long(url)}"
        )

    def epochs(self, url: str, scopes: Iterable[str], tags: Iterable[str]) -> tuple[str, ...]:
        """Return the keys of a URL's epochs: ``A``, ``U``, each ``S``, ``G``, each ``T``."""
        of_scopes, of_tags = map(self.scope, scopes), map(self.tag, tags)
        return (self.everything, self.url(url), *of_scopes, self.any_tag, *of_tags)

    @property
    def everything(self) -> str:
        """The key of ``A``, the epoch of everything."""
        return f"{self.prefix}:cache:epoch:all"

    def url(self, url: str) -> str:
        """Return ``U``, the key of a URL's epoch.

        The key contains neither scheme nor host. ``purge("/products/7")`` thus works anywhere, even
        in a worker that serves no requests, and purges the page under all its host names.
        """
        return f"{self.prefix}:cache:epoch:url:{_digest_if_long(url)}"

    def record(self, url: str) -> str:
        """Return ``P``, the key of the record of a URL's path; see ``Record``.

        Like the key of a URL's epoch, it contains neither scheme nor host.
        """
        return f"{self.prefix}:cache:query:{_digest_if_long(url.partition('?')[0])}"

    def scope(self, scope: str) -> str:
        """Return ``S``, the key of the epoch of a directory or a rule."""
        return f"{self.prefix}:cache:epoch:{_digest_if_long(scope)}"

    @property
    def any_tag(self) -> str:
        """The key of ``G``, the epoch that is replaced whenever a tag is purged."""
        return f"{self.prefix}:cache:epoch:tags"

    def tag(self, tag: str) -> str:
        """Return ``T``, the key of the epoch of a tag or of a cache group."""
        if (group := group_of_tag(tag)) is not None:
            return f"{self.prefix}:cache:epoch:group:{_digest_if_long(' '.join(group))}"
        return f"{self.prefix}:cache:epoch:tag:{_digest_if_long(tag)}"


def _digest_if_long(text: str) -> str:
    # URLs escape '#', so neither a URL nor a variant's key can look like a digest.
    return text if len(text) <= _MAX_TEXT_LENGTH else f"#{sha256(text.encode()).hexdigest()}"


def variant_key(key: str, selected: str, secret: bytes) -> str:
    """Return a resource's key extended by a hash of the values that select a variant.

    The values may contain cookies or credentials, so only a keyed hash of them is stored.
    """
    digest_key = secret if len(secret) <= 64 else sha256(secret).digest()
    return f"{key}#{blake2b(selected.encode(), digest_size=16, key=digest_key).hexdigest()}"


# --- URLs ---------------------------------------------------------------------------------------

# Bytes that may occur in a query are not changed, because only the application knows which queries
# are equivalent. Other bytes (space, '#', non-ASCII) are escaped.
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~[]{}|^\\`\"<>"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def url_of(request: HTTPRequest, rule: CacheRule) -> str:
    """Return a request's normalised path and query, as they are used in purges."""
    return url_text(request.raw_path, normal_query(request.query, rule))


def url_text(path: str, query: str) -> str:
    """Return a normalised path and a query in the form used in keys."""
    return f"{path}?{quote(query, safe=_QUERY_SAFE)}" if query else path


def urls_to_purge(texts: Iterable[str], rules: Iterable[CacheRule]) -> list[str]:
    """Return the results of ``url_of`` for requests to these URLs or paths, under all the rules.

    A URL may begin with the prefix under which the application is mounted, but paths of rules do
    not. A rule therefore applies if it covers any end of the path. Raises ValueError for text that
    is neither a URL nor a path.
    """
    urls: list[str] = []
    for text in texts:
        path, query = _path_and_query(text, "'/products/7'")
        queries = [query]
        if query:
            covering = (rule for rule in rules if rule.pattern.matches_end(unquote(path)))
            queries += [normal_query(query, rule) for rule in covering]
        urls += [url_text(path, each) for each in queries]
    return list(dict.fromkeys(urls))


def _path_and_query(text: str, example: str) -> tuple[str, str]:
    """Return the normalised path and the query of a URL or path. Raises ValueError otherwise."""
    if text.startswith("/"):
        path, _, query = text.partition("#")[0].partition("?")
        return normal_path(path), query
    parts = urlsplit(text)
    if parts.scheme not in _DEFAULT_PORTS or not parts.netloc:
        raise ValueError(
            f"cannot purge {text!r}: it should be a path such as {example}, or a whole URL "
            "with http or https"
        )
    return normal_path(parts.path or "/"), parts.query


# --- Scopes: the directories and the rule of a URL, by which it can be purged ---------------------

MAX_DIRECTORIES = 4
"""The number of a URL's directories that can be purged, from the outermost."""


def scopes_of(url: str, rule: CacheRule) -> tuple[str, ...]:
    """Return the scopes of a URL under its rule; the URL has the form of ``url_of``."""
    directories: list[str] = []
    path, end = url.partition("?")[0], 0
    while len(directories) < MAX_DIRECTORIES and (end := path.find("/", end + 1)) > 0:
        directories.append(f"under:{path[: end + 1]}")
    return (*directories, f"rule:{rule.path}")


def scopes_to_purge(
    directories: Iterable[str], paths: Iterable[str], rules: Iterable[CacheRule]
) -> list[str]:
    """Return the purge scopes of directories and of rules; a rule is named by its path.

    Raises ValueError for a value that is not a directory, for a directory below the fourth level,
    and for a path without a rule.
    """
    scopes, known = [], list(dict.fromkeys(rule.path for rule in rules))
    for text in directories:
        path, query = _path_and_query(text, "'/products/'")
        if query or not path.endswith("/") or "//" in path:
            without = path.rstrip("/")
            right = f"; write {without + '/'!r}" if without else ""
            raise ValueError(
                f"cannot purge the directory {text!r}: a directory ends in a slash and has no "
                f"query{right}"
            )
        depth = path.count("/") - 1
        if depth == 0:
            raise ValueError(f"cannot purge the directory {text!r}: purge everything instead")
        if depth > MAX_DIRECTORIES:
            outermost = "/".join(path.split("/")[: MAX_DIRECTORIES + 1]) + "/"
            raise ValueError(
                f"cannot purge the directory {text!r}: it is the {depth}th level, and responses "
                f"record {MAX_DIRECTORIES}; purge {outermost!r}, or give the responses a tag"
            )
        scopes.append(f"under:{path}")
    for path in paths:
        if known and path not in known:  # a process that only purges may have no rules
            raise ValueError(
                f"cannot purge the rule {path!r}: no rule of the cache has this path; the rules' "
                f"paths are {', '.join(map(repr, known))}"
            )
        scopes.append(f"rule:{path}")
    return list(dict.fromkeys(scopes))


def normal_query(query: str, rule: CacheRule) -> str:
    """Return a raw query with only the parameters that the rule keeps, sorted if the rule says so.

    Parameters are not decoded, because only the application knows what their values mean.
    """
    if rule.keep_query is None and not rule.ignore_query and not rule.sort_query:
        return query
    if len(query) > LONGEST_VALUE:  # limits the work for a request
        return query
    kept = []
    for part in filter(None, query.split("&")):
        name = unquote_plus(part.partition("=")[0])
        if rule.keep_query is not None and not _matches(name, rule.keep_query):
            continue
        if not _matches(name, rule.ignore_query):
            # Names that frameworks may decode in the same way are not sorted.
            kept.append((name if name.isascii() and "%" not in name else "", part))
    if rule.sort_query:
        kept.sort(key=lambda pair: pair[0])  # not by value, whose order may matter
    return "&".join(part for _, part in kept)


def drops_parameters(query: str, rule: CacheRule) -> bool:
    """Whether a raw query has parameters, even empty ones, that the rule does not keep."""
    kept = normal_query(query, rule)
    return bool(query) and query.count("&") + 1 > (kept.count("&") + 1 if kept else 0)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def origin_of(scheme: str, host: str) -> str:
    """Return scheme and authority without the scheme's default port (RFC 9110 §4.2.3)."""
    return origin_as_sent(scheme, host.removesuffix(_DEFAULT_PORTS.get(scheme, "-")))


def origin_as_sent(scheme: str, host: str) -> str:
    """Return scheme and authority with the port as sent, because applications put it into links."""
    authority = quote(host, safe=":[]") if len(host) <= _MAX_TEXT_LENGTH else _digest_if_long(host)
    return f"{quote(scheme, safe='')}://{authority}"
