"""What a request or a handler makes the cache do is bounded, whatever text it consists of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.contract.neutral import Answer, Reply, Seen
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served

LONG = 8000
QUICK = 1.0
"""Seconds, on a machine under load; unbounded work took several for what is asked here."""

RULES = {
    "one part": CacheRule("/products/{id}", ttl=60, tags=("product:{id}",)),
    "two parts": CacheRule("/{kind}/{id}", ttl=60, tags=("{kind}:{id}", "{id}:{kind}")),
    "the rest of the path": CacheRule("/{rest:path}", ttl=60, tags=("page:{rest}",)),
}
PATHS = {
    "colons": "/products/" + ":" * LONG,
    "escaped colons": "/products/" + "%3A" * (LONG // 3),
    "colons and text": "/products/" + "a:" * (LONG // 2),
}


def cache(*rules: CacheRule) -> tuple[str, dict[str, list[CacheRule]]]:
    return ("CacheMiddleware", {"cache": list(rules)})


def timed(served: Served, method: str, target: str) -> tuple[float, Answer]:
    """Return the shortest time of three such requests, and the last answer."""
    times, answers = [], []
    for _ in range(3):
        began = time.perf_counter()
        answers.append(served.request(method, target))
        times.append(time.perf_counter() - began)
    return min(times), answers[-1]


def status_of(answer: Answer) -> str:
    return answer.header("cache-status") or ""


@pytest.mark.parametrize("control", ["max-age=60", "no-store"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_makes_a_tag_of_too_many_parts_bypasses_the_cache(
    serve: Serve, path: str, rule: str, control: str
):
    """Decided before the tag is expanded, also for a page that may not be stored."""
    served = serve(
        lambda _: Reply(b"page", headers=(("cache-control", control),)), cache(RULES[rule])
    )
    taken, answer = timed(served, "GET", PATHS[path])
    assert taken < QUICK
    assert answer.body == b"page"
    assert "; fwd=bypass; detail=" in status_of(answer)


@pytest.mark.parametrize(
    ("identifier", "detail"),
    [
        ("a" * 1100, "a tag of more than 1024 bytes"),
        ("%C3%A9" * 600, "a tag of more than 1024 bytes"),
        (":".join("a" * 20), "a tag of more than 16 parts"),
    ],
    ids=["bytes", "bytes of non-ASCII text", "parts"],
)
def test_a_tag_that_is_too_long_is_named_as_the_reason_for_the_bypass(
    serve: Serve, identifier: str, detail: str
):
    """RFC 9211 §2.8."""
    served = serve(lambda _: Reply(b"page"), cache(RULES["one part"]))
    for _ in range(2):
        answer = served.request("GET", f"/products/{identifier}")
        assert status_of(answer) == f'upstash-middleware; fwd=bypass; detail="{detail}"'


def test_a_tag_within_its_bounds_is_stored_and_purged_by_any_of_its_ancestors(serve: Serve):
    def page(request: Seen) -> Reply:
        if request.method == "POST":
            assert request.purge is not None
            request.purge(tags=("product:" + ":".join("a" * 7),))
        return Reply(b"page")

    served = serve(page, cache(RULES["one part"]))
    target = "/products/" + ":".join("a" * 15)
    served.request("GET", target)
    assert "; hit" in status_of(served.request("GET", target))
    served.request("POST", "/purge")
    assert "; hit" not in status_of(served.request("GET", target))


@pytest.mark.parametrize(
    ("field", "tags", "detail"),
    [
        ("cache-tag", ":" * LONG, "a tag of more than 1024 bytes"),
        ("cache-tag", ",".join([":" * 1000] * 100), "a tag of more than 16 parts"),
        ("surrogate-key", " ".join([":" * 1000] * 100), "a tag of more than 16 parts"),
        ("cache-tag", ",".join(map(str, range(2000))), "more than 128 tags"),
        ("cache-tag", ",".join(f"{n}:{n}" for n in range(100)), "more than 128 tags"),
    ],
    ids=["long", "parts", "surrogate keys", "many", "many ancestors"],
)
def test_a_response_with_too_many_tags_is_not_stored_and_says_why(
    serve: Serve, field: str, tags: str, detail: str
):
    served = serve(lambda _: Reply(b"page", headers=((field, tags),)), cache(RULES["one part"]))
    taken, answer = timed(served, "GET", "/products/7")
    assert taken < QUICK
    assert status_of(answer) == f'upstash-middleware; fwd=uri-miss; detail="{detail}"'


def test_a_purge_of_a_tag_that_no_response_can_have_does_nothing(serve: Serve):
    """It takes no time, and the other tags of the call are purged."""

    def page(request: Seen) -> Reply:
        if request.method == "POST":
            assert request.purge is not None
            request.purge(tags=(":" * 2_000_000, "product"))
        return Reply(b"page")

    served = serve(page, cache(RULES["one part"]))
    served.request("GET", "/products/7")
    assert "; hit" in status_of(served.request("GET", "/products/7"))
    taken, _ = timed(served, "POST", "/purge")
    assert taken < QUICK
    assert "; hit" not in status_of(served.request("GET", "/products/7"))
