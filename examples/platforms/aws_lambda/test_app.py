"""Under Lambda all is done before the handler returns, and the client is who AWS says it is."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.platforms.aws_lambda import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from upstash_middleware.local import LocalUpstash

GUIDE = Path(__file__).parents[3] / "docs" / "platforms" / "lambda.md"
GATEWAYS = [events.rest_api, events.edge_rest_api, events.http_api, events.function_url]
pytestmark = pytest.mark.usefixtures("upstash")
SPOOFED = ["", "1.2.3.4", "1.2.3.4, 5.6.7.8", "unknown", "203.0.113.7, 10.0.0.1"]


@pytest.fixture(autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop that Mangum finds, and runs for as long as an event takes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def started(**environment: str) -> ModuleType:
    """Return the function as a new execution environment has it."""
    spec = spec_from_file_location("app", Path(__file__).with_name("app.py"))
    assert spec is not None
    assert spec.loader is not None
    function = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_LAMBDA_FUNCTION_NAME": "shop", **environment}.items():
            patch.setenv(name, value)
        spec.loader.exec_module(function)
        function.app.middleware_stack = function.app.build_middleware_stack()
    return function


@pytest.fixture
def gateway() -> ModuleType:
    """The function behind API Gateway or its own URL."""
    return started()


@pytest.fixture
def balanced() -> ModuleType:
    """The function behind a load balancer."""
    return started(BEHIND="alb")


def asked(function: ModuleType, event: events.Event) -> dict[str, Any]:
    answer: dict[str, Any] = function.handler(event, None)
    return answer


def identifiers(function: ModuleType, front: Callable[..., events.Event]) -> set[str]:
    """Return whom requests count for, whatever the client writes into X-Forwarded-For."""
    answers = [asked(function, front("/limited", spoofed)) for spoofed in SPOOFED]
    assert [answer["statusCode"] for answer in answers] == [200] * len(SPOOFED)
    return {json.loads(answer["body"])["identifier"] for answer in answers}


@pytest.mark.parametrize("front", GATEWAYS)
def test_the_connections_address_is_the_clients_and_no_header_changes_it(
    gateway: ModuleType, front: Callable[..., events.Event]
) -> None:
    assert identifiers(gateway, front) == {f"ip={events.SOURCE}"}


def test_behind_a_load_balancer_the_preset_reads_what_that_has_appended(
    balanced: ModuleType,
) -> None:
    assert identifiers(balanced, events.load_balancer) == {f"ip={events.SOURCE}"}


@pytest.mark.parametrize("front", GATEWAYS)
def test_the_preset_is_refused_where_the_last_entry_may_not_be_the_clients(
    balanced: ModuleType, front: Callable[..., events.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """It may be CloudFront's address, or one that the client has chosen."""
    assert asked(balanced, front("/limited", "1.2.3.4"))["statusCode"] == 500
    assert "ConfigurationError: client_ip='aws'" in caplog.text
    assert "set client_ip='aws-lambda'" in caplog.text


@pytest.mark.parametrize("front", GATEWAYS)
def test_the_eleventh_request_of_a_minute_is_denied(
    gateway: ModuleType, front: Callable[..., events.Event]
) -> None:
    answers = [asked(gateway, front("/limited")) for _ in range(11)]
    assert [answer["statusCode"] for answer in answers] == [200] * 10 + [429]
    assert int(answers[-1]["headers"]["retry-after"]) > 0
    assert not answers[-1]["isBase64Encoded"]
    assert json.loads(answers[-1]["body"])["type"].endswith("quota-exceeded")


@pytest.mark.parametrize("front", GATEWAYS)
def test_what_was_rendered_is_stored_before_the_handler_returns(
    gateway: ModuleType, front: Callable[..., events.Event], upstash: LocalUpstash
) -> None:
    first = asked(gateway, front("/page"))
    counted = upstash.bill().requests
    assert "fwd=uri-miss" in first["headers"]["cache-status"]
    assert upstash.bill().by_command["SET"] == 2, "the counter's and the page's"
    elsewhere = started()  # the first may stay frozen for ever
    second = asked(elsewhere, front("/page"))
    assert second["body"] == first["body"]
    assert "; hit" in second["headers"]["cache-status"]
    assert upstash.bill().requests > counted


def test_what_was_charged_is_settled_before_the_handler_returns(gateway: ModuleType) -> None:
    asked(gateway, events.http_api("/generate", method="POST"))
    left = json.loads(asked(started(), events.http_api("/limited"))["body"])["remaining"]
    assert left == 10 - (1 + 4) - 1


def test_a_stale_page_is_refreshed_before_the_handler_returns(gateway: ModuleType) -> None:
    asked(gateway, events.http_api("/page"))
    gateway.app.middleware_stack.app.runtime.purge("/page", soft=True)
    stale = asked(gateway, events.http_api("/page"))
    fresh = asked(started(), events.http_api("/page"))
    assert stale["body"] == "render number 1", "nobody waits for the rendering"
    assert fresh["body"] == "render number 2"
    assert "; hit" in fresh["headers"]["cache-status"]


def test_nothing_is_left_running_when_the_handler_has_returned(
    gateway: ModuleType, loop: asyncio.AbstractEventLoop
) -> None:
    """What still ran would freeze with the environment, in the middle of a call to Upstash."""
    before = set(threading.enumerate())
    for path in ("/limited", "/page", "/page"):
        asked(gateway, events.http_api(path))
        assert not asyncio.all_tasks(loop)
    assert set(threading.enumerate()) <= before


def test_without_a_lifespan_one_connection_serves_all_events(gateway: ModuleType) -> None:
    asked(gateway, events.http_api("/limited"))
    middleware = gateway.app.middleware_stack.app
    closed: list[object] = []
    aclose = middleware.runtime.aclose

    async def counted() -> None:
        closed.append(object())
        await aclose()

    middleware.runtime.aclose = counted
    asked(gateway, events.http_api("/limited"))
    assert not closed
    with_a_lifespan = gateway.Mangum(gateway.app, lifespan="auto")
    for _ in range(2):
        with_a_lifespan(events.http_api("/limited"), None)
    assert len(closed) == 2


def test_behind_a_load_balancer_the_log_says_what_to_set(
    gateway: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then all requests share one quota: no field of the client's gives it another."""
    answers = [
        asked(gateway, events.load_balancer("/limited", SPOOFED[number % len(SPOOFED)]))
        for number in range(11)
    ]
    assert [answer["statusCode"] for answer in answers] == [200] * 10 + [429]
    (line,) = (r for r in caplog.records if r.name == "upstash_middleware")
    assert "set client_ip='aws'" in line.getMessage()


def test_the_guides_function_serves_an_event() -> None:
    block = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block, names)
    answers = [names["handler"](events.function_url("/"), None) for _ in range(6)]
    assert [answer["statusCode"] for answer in answers] == [404] * 5 + [429]
    assert not answers[-1]["isBase64Encoded"]
