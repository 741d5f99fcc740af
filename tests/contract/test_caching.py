"""The cache answers what may be shared, says so, and never gives anybody another's page."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Answer, Fields, Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.clocks import MovableClock
    from tests.contract.conftest import Serve

PLAIN: Fields = (("content-type", "text/plain"),)
CACHING = ("UpstashMiddleware", "CacheMiddleware")


def cache(*rules: CacheRule) -> tuple[str, Any]:
    return "CacheMiddleware", {"cache": rules or (CacheRule("/page", ttl=60),)}


def counting(*fields: tuple[str, str], status: int = 200) -> Callable[[Seen], Reply]:
    """Return a handler whose body tells how often it was called."""
    numbers = itertools.count(1)
    return lambda _: Reply(b"render %d" % next(numbers), status, (*PLAIN, *fields))


def was_hit(answer: Answer) -> bool:
    return "; hit" in (answer.header("cache-status") or "")


@pytest.mark.parametrize("name", CACHING)
def test_a_miss_is_stored_and_the_next_request_is_a_hit_with_its_age(
    serve: Serve, clock: MovableClock, name: str
):
    """RFC 9111 §4 and §5.1, RFC 9211 §2."""
    served = serve(counting(), (name, {"cache": [CacheRule("/page", ttl=60)]}))
    miss = served.request("GET", "/page")
    clock.advance(7)
    hit = served.request("GET", "/page")
    assert (miss.body, hit.body) == (b"render 1", b"render 1")
    assert "fwd=uri-miss; stored" in (miss.header("cache-status") or "")
    assert was_hit(hit)
    assert miss.header("age") is None
    assert hit.header("age") in {"7", "8"}


def test_a_response_is_fresh_for_its_time_and_no_longer(serve: Serve, clock: MovableClock):
    """RFC 9111 §4.2."""
    served = serve(counting(("cache-control", "max-age=10")), cache())
    served.request("GET", "/page")
    clock.advance(8)
    assert served.request("GET", "/page").body == b"render 1"
    clock.advance(3)
    assert served.request("GET", "/page").body == b"render 2"


@pytest.mark.parametrize("length", [16, 64, 65, 1000])
def test_variants_are_found_again_under_a_secret_of_any_length(serve: Serve, length: int):
    """What selects them is written as a hash that is keyed with it."""
    served = serve(
        counting(("vary", "Accept-Language")),
        ("CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)], "secret": "s" * length}),
    )
    answers = [
        served.request("GET", "/page", (("accept-language", language),))
        for language in ("de", "en", "de", "en")
    ]
    assert [answer.body for answer in answers] == [b"render 1", b"render 2"] * 2
    assert [was_hit(answer) for answer in answers] == [False, False, True, True]


def test_status_header_fields_and_body_come_back_as_they_were_stored(serve: Serve):
    """RFC 9111 §3.1."""
    fields = (
        ("cache-control", "max-age=60"),
        ("content-language", "de"),
        ("link", "</a>; rel=next"),
        ("link", "</b>; rel=prev"),
        ("x-unknown", "\xe9"),
    )
    body = bytes(range(256)) * 40
    served = serve(lambda _: Reply(body, 404, (*PLAIN, *fields)), cache())
    miss, hit = served.request("GET", "/page"), served.request("GET", "/page")
    assert was_hit(hit)
    assert (hit.status, hit.body) == (404, body)
    for name, value in (*PLAIN, *fields):
        assert value in ", ".join(hit.lines(name))
        assert miss.lines(name) == hit.lines(name), "apart where the framework keeps them apart"
    assert hit.header("content-length") == str(len(body))


def test_a_streamed_response_is_stored_whole(serve: Serve):
    served = serve(lambda _: Reply(iter([b"one ", b"two ", b"three"]), headers=PLAIN), cache())
    served.request("GET", "/page")
    hit = served.request("GET", "/page")
    assert was_hit(hit)
    assert hit.body == b"one two three"


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"'])
def test_a_client_that_has_it_is_told_so(serve: Serve, etag: str):
    """RFC 9111 §4.3.2: If-None-Match is answered with 304 from the stored response."""
    served = serve(counting(("etag", etag)), cache())
    served.request("GET", "/page")
    answer = served.request("GET", "/page", (("if-none-match", f'"other", {etag}'),))
    assert (answer.status, answer.body) == (304, b"")
    assert answer.header("etag") == etag
    other = served.request("GET", "/page", (("if-none-match", '"other"'),))
    assert (other.status, other.body) == (200, b"render 1")


def test_head_is_answered_from_a_stored_get_without_a_body(serve: Serve):
    """RFC 9111 §4, RFC 9110 §9.3.2."""
    served = serve(counting(), cache())
    served.request("GET", "/page")
    head = served.request("HEAD", "/page")
    assert was_hit(head)
    assert (head.status, head.body, head.header("content-length")) == (200, b"", "8")


def test_the_answer_to_head_is_not_stored_for_get(serve: Serve):
    served = serve(counting(), cache())
    served.request("HEAD", "/page")
    assert served.request("GET", "/page").body == b"render 2"


def test_paths_queries_and_hosts_are_stored_apart(serve: Serve):
    """RFC 9111 §2: the cache key is the URI at least."""
    served = serve(counting(), cache(CacheRule("/{name}", ttl=60)))
    asked = [("/a", "x"), ("/b", "x"), ("/a?q=1", "x"), ("/a?q=2", "x"), ("/a?q=1", "y")]
    bodies = [served.request("GET", target, host=host).body for target, host in asked]
    assert len(set(bodies)) == len(asked)
    assert [served.request("GET", target, host=host).body for target, host in asked] == bodies


def test_what_no_rule_covers_passes_without_a_word_from_the_cache(serve: Serve):
    served = serve(counting(("cache-control", "max-age=60")), cache())
    answers = [served.request("GET", "/other") for _ in range(2)]
    assert [answer.body for answer in answers] == [b"render 1", b"render 2"]
    assert answers[1].header("cache-status") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_only_get_and_head_are_answered(serve: Serve, method: str):
    served = serve(counting(), cache())
    served.request("GET", "/page")
    assert served.request(method, "/page").body == b"render 2"


@pytest.mark.parametrize(
    "fields",
    [
        (("cache-control", "no-store"),),
        (("cache-control", "private"),),
        (("cache-control", "PRIVATE, max-age=60"),),
        (("cache-control", "max-age=60"), ("set-cookie", "session=1")),
        (("cache-control", "max-age=60"), ("vary", "*")),
        (("vary", "Accept, *"),),
    ],
)
def test_what_is_not_to_be_shared_is_never_stored(serve: Serve, fields: Fields):
    """RFC 9111 §3 and §4.1; Set-Cookie by the safe profile."""
    served = serve(counting(*fields), cache())
    answers = [served.request("GET", "/page") for _ in range(2)]
    assert [answer.body for answer in answers] == [b"render 1", b"render 2"]
    assert "detail=" in (answers[0].header("cache-status") or "")


def test_a_response_to_a_request_with_authorization_is_not_stored(serve: Serve):
    """RFC 9111 §3.5."""
    served = serve(counting(), cache())
    served.request("GET", "/page", (("authorization", "Bearer a"),))
    assert served.request("GET", "/page").body == b"render 2"


def test_a_response_to_a_request_with_cookies_is_not_given_to_others(serve: Serve):
    served = serve(counting(), cache())
    served.request("GET", "/page", (("cookie", "session=alice"),))
    assert served.request("GET", "/page").body == b"render 2"


def test_with_vary_cookie_each_cookie_has_its_own_response(serve: Serve):
    """RFC 9111 §4.1."""
    served = serve(counting(("vary", "Cookie")), cache())
    alice, bob = (("cookie", "session=alice"),), (("cookie", "session=bob"),)
    assert served.request("GET", "/page", alice).body == b"render 1"
    assert served.request("GET", "/page", bob).body == b"render 2"
    assert served.request("GET", "/page", alice).body == b"render 1"
    assert served.request("GET", "/page").body == b"render 3"


def test_any_number_of_variants_are_kept(serve: Serve):
    """RFC 9111 §4.1."""

    def by_language(request: Seen) -> Reply:
        language = request.header("accept-language") or "none"
        return Reply(language.encode(), headers=(*PLAIN, ("vary", "Accept-Language")))

    served = serve(by_language, cache())
    languages = ["de", "en", "fr", "it", "nl"]
    for language in languages:
        served.request("GET", "/page", (("accept-language", language),))
    for language in languages:
        answer = served.request("GET", "/page", (("accept-language", language),))
        assert was_hit(answer)
        assert answer.body == language.encode()


def test_an_application_that_raises_leaves_nothing_behind(serve: Serve):
    calls: list[str] = []

    def failing_first(request: Seen) -> Reply:
        calls.append(request.path)
        if len(calls) == 1:
            raise RuntimeError("first")
        return Reply(b"second")

    served = serve(failing_first, cache())
    assert served.request("GET", "/page").status == 500
    assert served.request("GET", "/page").body == b"second"


@pytest.mark.parametrize("how", ["raises", "answers 503"])
def test_a_stale_response_stands_in_for_an_error_where_it_may(
    serve: Serve, clock: MovableClock, how: str
):
    """RFC 5861 §4."""
    broken: list[bool] = []

    def failing(request: Seen) -> Reply:
        if broken and how == "raises":
            raise RuntimeError(request.path)
        fields = (*PLAIN, ("cache-control", "max-age=10, stale-if-error=60"))
        return Reply(b"error", 503) if broken else Reply(b"page", headers=fields)

    served = serve(failing, cache())
    served.request("GET", "/page")
    broken.append(True)
    clock.advance(20)
    answer = served.request("GET", "/page")
    assert (answer.status, answer.body) == (200, b"page")
    assert int(answer.header("age") or 0) >= 20
    clock.advance(100)
    assert served.request("GET", "/page").status >= 500


def test_a_body_that_breaks_off_is_not_stored(serve: Serve):
    """RFC 9111 §3.3."""
    calls: list[str] = []

    def breaking_first(request: Seen) -> Reply:
        calls.append(request.path)
        return Reply(broken() if len(calls) == 1 else iter([b"whole"]), headers=PLAIN)

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("half-way")

    served = serve(breaking_first, cache())
    with suppress(RuntimeError):  # how a broken body reaches the client is the server's affair
        served.request("GET", "/page")
    assert served.request("GET", "/page").body == b"whole"


def test_a_limits_fields_are_neither_stored_nor_sent_with_a_hit(serve: Serve):
    layer = (
        "UpstashMiddleware",
        {"default_limit": "9/hour", "cache": [CacheRule("/page", ttl=60)]},
    )
    served = serve(counting(("cache-control", "max-age=60")), layer)
    for _ in range(2):
        answer = served.request("GET", "/page")
        assert not [name for name, _ in answer.headers if "ratelimit" in name.lower()]
