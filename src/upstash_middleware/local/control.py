"""The server's own addresses under ``/-/``: the bill, the weather, a clean database, the console.

What Upstash has not may live here, and only that.  Programs ask these; people have the console,
which stands in `console`.  These addresses ask for no token: the server
is for one machine.  So that no page in a browser on this machine can use them, they refuse requests
that a page has sent, which show their Origin.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console.addresses import CONSOLE
from upstash_middleware.local.console.routes import answer_console
from upstash_middleware.local.messages import Answer, error_answer, json_answer
from upstash_middleware.local.weather import CLEAR, Fault, Weather, parse_weather, plain_weather

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from upstash_middleware.local.messages import Request, Response
    from upstash_middleware.local.service import Service

PREFIX: Final = b"/-/"


async def answer_control(service: Service, request: Request) -> Response:
    """The answer to a request under ``/-/``; the console has a door of its own."""
    if request.path == CONSOLE or request.path.startswith(CONSOLE + b"/"):
        return await answer_console(service, request)
    if b"origin" in request.headers:
        return error_answer(403, "the local server's own addresses are not for web pages")
    handler = _ROUTES.get((request.method, request.path))
    if handler is None:
        routes = ", ".join(f"{method} {path.decode()}" for method, path in _ROUTES)
        return error_answer(404, f"the local server's own addresses are: {routes}")
    return await handler(service, request)


async def _read_bill(service: Service, _: Request) -> Answer:
    bill = service.meter.read()
    price = round(bill.dollars_per_million_requests, 4)
    return json_answer(200, {**asdict(bill), "dollars_per_million_requests": price})


async def _reset_bill(service: Service, request: Request) -> Answer:
    service.reset_bill()
    return await _read_bill(service, request)


async def _read_weather(service: Service, _: Request) -> Answer:
    return json_answer(200, plain_weather(service.weather.look()))


async def _change_weather(service: Service, request: Request) -> Answer:
    try:
        weather = parse_weather(json.loads(request.body))
    except (ValueError, RecursionError) as error:
        return error_answer(400, str(error))
    if weather.fault is Fault.REFUSE and weather.seconds is None:
        return error_answer(
            400, "weather: refuse needs seconds, since this address is refused with the others"
        )
    return await _set_weather(service, weather, request)


async def _clear_weather(service: Service, request: Request) -> Answer:
    return await _set_weather(service, CLEAR, request)


async def _set_weather(service: Service, weather: Weather, request: Request) -> Answer:
    service.change_weather(weather)
    return await _read_weather(service, request)


async def _flush(service: Service, _: Request) -> Answer:
    await service.flush()
    return json_answer(200, {"result": "OK"})


_ROUTES: Final[dict[tuple[str, bytes], Callable[[Service, Request], Awaitable[Answer]]]] = {
    ("GET", b"/-/bill"): _read_bill,
    ("POST", b"/-/bill/reset"): _reset_bill,
    ("GET", b"/-/weather"): _read_weather,
    ("PUT", b"/-/weather"): _change_weather,
    ("DELETE", b"/-/weather"): _clear_weather,
    ("POST", b"/-/flush"): _flush,
}
