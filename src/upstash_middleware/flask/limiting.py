"""``@limit`` in front of a Flask view, or as a ``before_request`` function."""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from flask import after_this_request, current_app, g, request, request_tearing_down

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.flask.denying import complete, denied
from upstash_middleware.flask.extension import CONFIG, EXTENSION
from upstash_middleware.flask.routing import is_exempt_view
from upstash_middleware.flask.signals import send_rate_limited
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.handler_limits import HandlerLimit, Place
from upstash_middleware.handlers import REFRESH, is_exempt, owner_of
from upstash_middleware.wsgi.environ import fields_of, head_of, request_of
from upstash_middleware.wsgi.middleware import RATE_LIMIT_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from flask import Flask
    from flask.wrappers import Response as FlaskResponse

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.handler_limits import LimitArguments
    from upstash_middleware.messages import ResponseHead
    from upstash_middleware.wsgi.middleware import Middleware

V = TypeVar("V", bound="Callable[..., Any]")

_OWN_GATEWAY = "upstash_middleware.limits"
_STEPS_KEY = "upstash_middleware.steps"


class Limit(HandlerLimit):
    """A limit that decorates views, and is a ``before_request`` function; made by ``limit``."""

    @overload
    def __call__(self, /) -> None: ...

    @overload
    def __call__(self, view: V, /) -> V: ...

    def __call__(self, view: Any = None, /) -> Any:
        """Put the limit in front of a view; or, given none, of the request that is at hand."""
        if view is None:
            self._before_request()
            return None
        if inspect.isclass(view) or not callable(view):
            raise ConfigurationError(
                f"{self.rule.setting}: {view!r} should be a view function; of a class, put the "
                "limit into its `decorators`, of a blueprint, into its `before_request`"
            )

        @functools.wraps(view)
        def limited(*args: Any, **kwargs: Any) -> Any:
            owner = owner_of(view, args)
            if not (is_exempt_view(limited) or is_exempt(owner)):
                self._check(Place(view, owner))
            return current_app.ensure_sync(view)(*args, **kwargs)

        return limited

    def _before_request(self) -> None:
        view = current_app.view_functions.get(request.endpoint or "", unrouted)
        if not is_exempt_view(view):
            self._check(Place(view))

    def _check(self, place: Place) -> None:
        """Decide about the request at hand; raises RateLimitExceeded or its like."""
        app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - Flask's documented way to the object behind its proxy
        gateway = gateway_of(app)
        environ = request.environ
        if not gateway.enabled or REFRESH in environ:
            g.setdefault("rate_limit", None)
            return
        begun = self.begin(gateway, place, request_of(environ), environ.get(RATE_LIMIT_KEY))
        g.rate_limit = environ[RATE_LIMIT_KEY] = begun.decision
        exchange = begun.exchange
        if exchange.response is not None and exchange.decision is not None:
            send_rate_limited(app, gateway, exchange.decision)
            _when_answered(functools.partial(complete, denial=exchange.response))
            raise denied(exchange.response, exchange.decision)
        _when_answered(_Passing(gateway, exchange))


def limit(limits: Any, **arguments: Unpack[LimitArguments]) -> Limit:
    """Limit the requests for a view: ``@limit("5/minute")``, below ``@app.route``.

    For the views of a blueprint, or of all: ``blueprint.before_request(limit("100/minute"))``;
    for those of a class: ``decorators = [limit("5/minute")]``. ``limits`` and the arguments are
    those of RateLimitRule. The limit stands behind routing and whatever ``before_request`` has
    found out, and takes a round trip of its own. Each view counts by itself, under its qualified
    name; one limit object with a ``name`` before several counts them together. What is above the
    quota raises RateLimitExceeded; the view reads ``g.rate_limit``. Raises ConfigurationError.
    """
    return Limit(limits, arguments)


def unrouted() -> None:
    """Stand for the view of requests that no route matches: they count together."""


def gateway_of(app: Flask) -> Gateway:
    """Return the gateway of the application's middleware, one with limits of its own first.

    Where it has none, one made from its config and the environment.
    """
    present: dict[Any, Middleware] = app.extensions.get(EXTENSION, {})
    gateways = [middleware.gateway for middleware in present.values()]
    if gateways:
        return max(gateways, key=lambda gateway: Halves.RATE_LIMIT in gateway.halves)
    if _OWN_GATEWAY not in app.extensions:
        config = app.config.get(CONFIG, {})
        made = Gateway.of(config, Halves(0), os.environ, source=CONFIG)
        app.extensions.setdefault(_OWN_GATEWAY, made)
    return cast("Gateway", app.extensions[_OWN_GATEWAY])


class _Passing:
    """One limit's exchange: it sees the response, and ends when that is closed."""

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._answered = False

    def __call__(self, response: FlaskResponse) -> None:
        """Show the exchange the response that Flask has, of a view or an error handler."""
        self._answered = True
        head = head_of(response.status, response.headers.to_wsgi_list())
        sent = cast("ResponseHead", self._exchange.head(head))  # a limit replaces no response
        added = fields_of(sent.headers)[len(head.headers.raw) :]
        for name, value in added:
            response.headers.add(name, value)
        response.call_on_close(self._finish)

    def give_up(self) -> None:
        """End where there has been no response: the exception goes on to the server."""
        if not self._answered:
            self._gateway.finish(self._exchange, complete=False)

    def _finish(self) -> None:
        self._gateway.finish(self._exchange, complete=True)


def _when_answered(step: Callable[[FlaskResponse], None]) -> None:
    """Have a step taken on the response, before those of the limits further out."""
    steps = request.environ.get(_STEPS_KEY)
    if steps is None:
        steps = request.environ[_STEPS_KEY] = []
        after_this_request(_answer)
        request_tearing_down.connect(_give_up, current_app._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001 - as above
    steps.append(step)


def _answer(response: FlaskResponse) -> FlaskResponse:
    for step in reversed(request.environ[_STEPS_KEY]):
        step(response)
    return response


def _give_up(_app: Flask, **_: object) -> None:
    for step in request.environ.get(_STEPS_KEY, ()):
        if isinstance(step, _Passing):
            step.give_up()
