"""A denial in the application's own words, by the setting ``on_denied``, in every framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from upstash_middleware import Decision, HTTPRequest


def worded(request: HTTPRequest, decision: Decision) -> tuple[int, dict[str, str], str]:
    return 420, {"Content-Type": "text/plain"}, f"{request.path}: {decision.limit} and no more"


async def worded_async(request: HTTPRequest, decision: Decision) -> tuple[int, dict[str, str], str]:
    return worded(request, decision)


def silent(_request: HTTPRequest, _decision: Decision) -> None:
    """Leave the answer to the package."""


def broken(_request: HTTPRequest, _decision: Decision) -> Any:
    raise KeyError("template")


def layer(on_denied: Any) -> tuple[str, dict[str, Any]]:
    return "RateLimitMiddleware", {"default_limit": "1/hour", "on_denied": on_denied}


@pytest.mark.parametrize("function", [worded, worded_async])
def test_the_applications_words_go_out_with_what_a_denial_has_to_tell(serve: Serve, function: Any):
    served = serve(lambda _: Reply(b"here"), layer(function))
    served.request("GET", "/tea")
    denied = served.request("GET", "/tea")
    bodiless = served.request("HEAD", "/tea")
    assert (denied.status, denied.body) == (420, b"/tea: 1 and no more")
    assert denied.header("content-type") == "text/plain"
    assert int(denied.header("retry-after") or 0) > 0
    assert denied.header("cache-control") == "no-store"
    assert denied.header("x-ratelimit-remaining") == "0"
    assert (bodiless.status, bodiless.body) == (420, b"")


@pytest.mark.parametrize("function", [silent, broken])
def test_without_words_the_packages_own_go_out(serve: Serve, function: Any):
    served = serve(lambda _: Reply(b"here"), layer(function))
    served.request("GET", "/tea")
    denied = served.request("GET", "/tea")
    assert denied.status == 429
    assert denied.header("content-type") == "application/problem+json"
