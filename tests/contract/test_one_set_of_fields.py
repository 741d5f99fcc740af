"""A response has the limit fields of the application or those of this package, not some of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer

LIMIT: tuple[str, dict[str, Any]] = ("RateLimitMiddleware", {"default_limit": "10/hour"})
DECORATED: tuple[str, dict[str, Any]] = ("5/hour", {"name": "decorated"})
PLACES: dict[str, dict[str, Any]] = {
    "middleware": {"layers": [LIMIT], "limits": []},
    "decorator": {"layers": [], "limits": [DECORATED]},
    "both": {"layers": [LIMIT], "limits": [DECORATED]},
}
TEXT = ("content-type", "text/plain")


def limit_fields(answer: Answer) -> list[tuple[str, str]]:
    return [(n.lower(), v) for n, v in answer.headers if "ratelimit" in n.lower()]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(
    "own",
    [
        (("X-RateLimit-Remaining", "777"),),
        (("x-ratelimit-limit", "5000"), ("x-ratelimit-reset", "1")),
        (("RateLimit", '"upstream";r=7'), ("RateLimit-Policy", '"upstream";q=9;w=60')),
        (("RateLimit-Remaining", "7"),),
    ],
    ids=lambda own: own[0][0],
)
def test_what_the_handler_sets_is_sent_alone(serve: Serve, place: Any, own: Any):
    """Those of an API that it passes on, for instance."""
    served = serve(lambda _: Reply(headers=(TEXT, *own)), *place["layers"], limits=place["limits"])
    found = limit_fields(served.request("GET", "/"))
    assert sorted(found) == sorted((name.lower(), value) for name, value in own)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_without_fields_of_the_handlers_each_of_ours_is_sent_once(serve: Serve, place: Any):
    served = serve(lambda _: Reply(headers=(TEXT,)), *place["layers"], limits=place["limits"])
    found = limit_fields(served.request("GET", "/"))
    names = ["ratelimit", "ratelimit-policy", "x-ratelimit-limit"]
    names += ["x-ratelimit-remaining", "x-ratelimit-reset"]
    assert sorted(name for name, _ in found) == names


def test_the_fields_of_several_limits_are_one_set_of_the_tightest_and_all_policies(serve: Serve):
    served = serve(lambda _: Reply(headers=(TEXT,)), LIMIT, limits=[("50/day", {}), DECORATED])
    fields = dict(limit_fields(served.request("GET", "/")))
    assert (fields["x-ratelimit-limit"], fields["x-ratelimit-remaining"]) == ("5", "4")
    policies = fields["ratelimit-policy"]
    assert all(f"q={quota};" in policies for quota in (10, 50, 5))
    assert policies.count("q=") == 3
    assert fields["ratelimit"].count("r=") == 3


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_denial_in_the_applications_words_keeps_its_own_fields_alone(serve: Serve, place: Any):
    def slow_down(_request: Any, _decision: Any) -> Any:
        return 429, {"X-RateLimit-Remaining": "777"}, "slow down"

    layers = [(name, {**given, "on_denied": slow_down}) for name, given in place["layers"]]
    if not layers:
        layers = [("CacheMiddleware", {"cache": [{"path": "/x"}], "on_denied": slow_down})]
    served = serve(lambda _: Reply(headers=(TEXT,)), *layers, limits=place["limits"])
    denied = [served.request("GET", "/") for _ in range(11)][-1]
    assert denied.status == 429
    assert limit_fields(denied) == [("x-ratelimit-remaining", "777")]
    assert int(denied.header("retry-after") or 0) > 0


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_page_that_is_stored_keeps_the_applications_fields_alone(serve: Serve, place: Any):
    own = (TEXT, ("X-RateLimit-Limit", "5000"))
    cache = ("CacheMiddleware", {"cache": [{"path": "/page", "ttl": 60}]})
    served = serve(lambda _: Reply(headers=own), *place["layers"], cache, limits=place["limits"])
    for _ in range(2):
        found = limit_fields(served.request("GET", "/page"))
        assert found in ([("x-ratelimit-limit", "5000")], [])
