"""RFC 9211 §2.5: Cache-Status says ``stored`` only where nothing can decide against it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer
    from upstash_middleware.local import LocalUpstash

TEXT = ("content-type", "text/plain")


def cache(**more: Any) -> tuple[str, dict[str, Any]]:
    return "CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)], **more}


def status(answer: Answer) -> list[str]:
    """Return the parameters of our member."""
    return (answer.header("cache-status") or "").split("; ")[1:]


def test_a_whole_body_that_fits_is_stored_and_said_to_be(serve: Serve):
    site = serve(lambda _: Reply(b"page"), cache())
    assert status(site.request("GET", "/page")) == ["fwd=uri-miss", "stored"]
    assert "hit" in status(site.request("GET", "/page"))


def test_a_body_whose_length_is_not_known_is_not_said_to_be_stored(serve: Serve):
    """It may become too large; this one does not."""
    site = serve(lambda _: Reply(iter([b"one ", b"two"])), cache())
    assert status(site.request("GET", "/page")) == ["fwd=uri-miss"]
    assert "hit" in status(site.request("GET", "/page"))


def test_a_body_that_becomes_too_large_was_not_said_to_be_stored(serve: Serve):
    site = serve(lambda _: Reply(iter([b"a" * 600, b"b" * 600])), cache(cache_max_body=1000))
    for _ in range(2):
        assert status(site.request("GET", "/page")) == ["fwd=uri-miss"]


def test_a_body_that_shows_a_clients_address_was_not_said_to_be_stored(serve: Serve):
    def page(seen: Seen) -> Reply:
        return Reply((seen.header("x-forwarded-for") or "").encode(), headers=(TEXT,))

    site = serve(page, cache())
    answer = site.request("GET", "/page", (("x-forwarded-for", "192.0.2.66"),))
    assert answer.body == b"192.0.2.66"
    assert "stored" not in status(answer)
    assert "hit" not in status(site.request("GET", "/page"))


def test_a_response_one_of_whose_tags_is_purged_meanwhile_was_not_said_to_be_stored(serve: Serve):
    def page(seen: Seen) -> Reply:
        assert seen.purge is not None
        seen.purge(tags=("shelf",))
        return Reply(b"page", headers=(TEXT, ("cache-tag", "shelf")))

    site = serve(page, cache())
    assert status(site.request("GET", "/page")) == ["fwd=uri-miss"]
    assert "hit" not in status(site.request("GET", "/page"))


def test_the_answer_to_a_post_is_not_said_to_be_stored(serve: Serve):
    """The URL may be purged meanwhile; here it is not."""
    fields = (TEXT, ("content-location", "/page"), ("cache-control", "max-age=60"))
    site = serve(lambda _: Reply(b"page", headers=fields), cache(cache_profile="conforming"))
    assert status(site.request("POST", "/page")) == ["fwd=method"]
    assert "hit" in status(site.request("GET", "/page"))


def test_what_a_304_confirms_is_said_to_be_stored(serve: Serve, upstash: LocalUpstash):
    def page(seen: Seen) -> Reply:
        fields = (TEXT, ("etag", '"1"'), ("cache-control", "max-age=60"))
        return Reply(status=304 if seen.header("if-none-match") else 200, headers=fields)

    site = serve(page, cache())
    site.request("GET", "/page")
    upstash.advance(100)
    answer = site.request("GET", "/page")
    assert status(answer)[:2] == ["fwd=stale", "fwd-status=304"]
    assert "stored" in status(answer)
