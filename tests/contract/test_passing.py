"""What the middleware has no say in passes as if it were not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Serve
    from upstash_middleware.local import LocalUpstash

Layer = tuple[str, dict[str, Any]]

BOTH: Layer = (
    "UpstashMiddleware",
    {"default_limit": "1000/hour", "cache": [CacheRule("/page", ttl=60)]},
)


def test_the_handler_sees_the_request_as_it_was_sent(serve: Serve):
    seen: list[Seen] = []

    def handler(request: Seen) -> Reply:
        seen.append(request)
        return Reply()

    served = serve(handler, BOTH)
    served.request("POST", "/tea%20time?size=2&q=%C3%BC", (("x-a", "one"),), b"a=1")
    (request,) = seen
    assert (request.method, request.path, request.query) == ("POST", "/tea time", "size=2&q=%C3%BC")
    assert request.header("x-a") == "one"
    assert request.body == b"a=1"


@pytest.mark.parametrize("status", [200, 201, 301, 404, 418, 500, 503])
def test_status_header_fields_and_body_are_kept(serve: Serve, status: int):
    fields = (("content-type", "text/html; charset=utf-8"), ("x-a", "1"), ("location", "/there"))
    served = serve(lambda _: Reply(b"<p>body</p>", status, fields), BOTH)
    answer = served.request("GET", "/other")
    assert answer.status == status
    assert answer.body == b"<p>body</p>"
    for name, value in fields:
        assert answer.lines(name) == [value]
    assert answer.lines("content-length") in ([], ["11"])  # Django leaves it to CommonMiddleware


def test_several_cookies_are_kept_apart(serve: Serve):
    cookies = (("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2; Path=/"))
    served = serve(lambda _: Reply(b"", headers=cookies), BOTH)
    lines = served.request("GET", "/other").lines("set-cookie")
    assert [line.strip() for line in lines] == ["a=1; Path=/", "b=2; Path=/"]


@pytest.mark.parametrize("path", ["/page", "/other"])
def test_a_streamed_body_arrives_whole(serve: Serve, path: str):
    served = serve(lambda _: Reply(iter([b"one ", b"two ", b"three"])), BOTH)
    assert served.request("GET", path).body == b"one two three"


def test_a_body_is_taken_from_the_application_piece_by_piece(serve: Serve):
    """Nothing is buffered: no piece is asked for before the one before it has passed."""
    taken: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(3):
            taken.append(number)
            yield b"%d" % number

    served = serve(lambda _: Reply(pieces()), BOTH)
    assert served.request("GET", "/page").body == b"012"
    assert taken == [0, 1, 2]


def test_an_application_that_raises_is_answered_as_without_the_middleware(serve: Serve):
    def handler(request: Seen) -> Reply:
        raise RuntimeError(request.path)

    served = serve(handler, BOTH)
    for _ in range(2):
        assert served.request("GET", "/page").status == 500


def test_switched_off_by_argument_nothing_is_done_and_nothing_is_needed(
    serve: Serve, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
):
    for name in upstash.env:
        monkeypatch.delenv(name)
    name, arguments = BOTH
    assert_untouched(serve, (name, {**arguments, "enabled": False}), upstash)


def test_switched_off_by_environment_nothing_is_done_and_nothing_is_needed(
    serve: Serve, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
):
    for name in upstash.env:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UPSTASH_MIDDLEWARE_ENABLED", "0")
    assert_untouched(serve, BOTH, upstash)


def assert_untouched(serve: Serve, layer: Layer, upstash: LocalUpstash) -> None:
    def handler(request: Seen) -> Reply:
        assert request.rate_limit is None or request.rate_limit.remaining is None
        if request.purge is not None:
            request.purge("/page")
        return Reply(b"plain")

    served = serve(handler, layer)
    answer = served.request("GET", "/page")
    assert (answer.status, answer.body) == (200, b"plain")
    assert not {"cache-status", "ratelimit", "x-ratelimit-limit"} & set(_names(answer.headers))
    assert upstash.bill().requests == 0


def _names(fields: tuple[tuple[str, str], ...]) -> list[str]:
    return [name.lower() for name, _ in fields]
