"""Whatever is stored in place of a session, no request fails with a server error.

Each example is a session that somebody has changed on Redis, and a request that uses it, in each
framework. What cannot be read is missing, and what is read can be saved again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import path
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.django.project  # noqa: F401 - it configures Django
from tests.sessions.site import Site, ask, stored_keys
from upstash_middleware.flask import Sessions
from upstash_middleware.flask import session as flask_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

SECRET = "a long random text of this application"
OURS = "upstash_middleware.django."


def use(session: Any, how: str) -> None:
    """Read all entries of a session, and then change it in this way."""
    for name, value in list(session.items()):
        assert session[name] is value
    match how:
        case "start":
            session["a"], session["b"] = 1, ["b"]
        case "write":
            session["new"] = 1
            session.pop("a", None)
        case "append":
            for value in list(session.values()):
                if isinstance(value, list):
                    value.append("more")
        case "bind":
            session["a"], session["b"] = 1, ["b"]
            session.bind("ada")
        case "regenerate":
            session.regenerate()
        case "clear":
            session.clear()
            session["new"] = 1
        case "revoke_all":
            session.revoke_all("ada")
            session["new"] = 1


HOWS = ["read", "write", "append", "bind", "regenerate", "clear", "revoke_all"]


class Visitor:
    """One browser of a site of Starlette's, Flask's or Django's, with a session in Redis."""

    def __init__(self, framework: str, upstash: LocalUpstash) -> None:
        self._get: Callable[[str], Any]
        self._forget: Callable[[], None]
        getattr(self, f"_use_{framework}")(upstash)
        self._upstash = upstash

    def asks(self, how: str) -> int:
        """Send a request whose handler uses the session; return the status of the response."""
        return int(self._get(how).status_code)

    def has(self, fields: dict[str, bytes], epoch: bytes | None = None) -> None:
        """Change the session on Redis: these fields, and the epoch of its user if it has one."""
        key, *_ = stored_keys(self._upstash)
        for name, value in fields.items():  # "." cannot be part of a path, which bytes are sent in
            script = f"return redis.call('HSET', KEYS[1], {json.dumps(name)}, ARGV[1])"
            ask(self._upstash, "EVAL", script, 1, key, value)
        for each in stored_keys(self._upstash, "*:session-user:*"):
            if epoch is not None:
                ask(self._upstash, "SET", each, epoch, "EX", 100)

    def starts_again(self, *, is_bound: bool) -> None:
        """Replace the browser's session by a new one, whose entries are ``a`` and ``b``."""
        self._upstash.flush()
        self._forget()
        assert self.asks("bind" if is_bound else "start") == 200

    def _use_starlette(self, upstash: LocalUpstash) -> None:
        browser = Site(upstash, secret_key=SECRET).browser(raise_server_exceptions=False)
        self._get = lambda how: browser.does(lambda session: use(session, how))
        self._forget = browser.client.cookies.clear

    def _use_flask(self, upstash: LocalUpstash) -> None:
        app = Flask("shop")
        app.secret_key = SECRET
        Sessions(app, redis=upstash)

        @app.get("/<how>")
        def page(how: str) -> str:
            use(flask_session, how)
            return str(flask_session.permanent)

        browser = app.test_client()
        self._get = lambda how: browser.get(f"/{how}")
        self._forget = lambda: browser.delete_cookie("session")

    def _use_django(self, _upstash: LocalUpstash) -> None:
        browser = Client(raise_request_exception=False)
        self._get = lambda how: browser.get(f"/{how}")
        self._forget = browser.cookies.clear


def page(request: Any, how: str) -> HttpResponse:
    use(request.session, how)
    return HttpResponse("done")


urlpatterns = [path("<how>", page)]


@pytest.fixture(params=["starlette", "flask", "django"])
def visitor(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Iterator[Visitor]:
    with override_settings(
        MIDDLEWARE=[f"{OURS}UpstashMiddleware", f"{OURS}SessionMiddleware"],
        ROOT_URLCONF=__name__,
        SESSION_ENGINE=f"{OURS}sessions",
        UPSTASH_MIDDLEWARE={"redis": upstash, "default_limit": None, "breaker": False},
    ):
        yield Visitor(request.param, upstash)


# --- What is stored -----------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, -1, 1, 1e308, -1e308, 2**70, 1795646797.5, 4e9]) | st.floats(
    allow_nan=False, allow_infinity=False
)
TEXTS = st.text(max_size=5) | st.just("é\n")
HEADS = st.builds(
    lambda epoch, *head: epoch.encode() + b"\n" + json.dumps(head).encode(),
    *(TEXTS, NUMBERS, NUMBERS, TEXTS, TEXTS | st.just("")),
)
TAGS = st.sampled_from(
    [
        *("$date", "$datetime", "$time", "$timedelta", "$decimal", "$uuid", "$bytes", "$int"),
        *("$tuple", "$set", "$frozenset", "$markup", "$response", "$", "$$", "$$date"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=5),
    st.sampled_from(
        ["NaN", "sNaN", "Infinity", "2026-01-31", "2026-01-31T00:00+01:00", "0xfff", "9999-12-31"]
    ),
)
JSON = st.recursive(
    SCALARS,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.dictionaries(st.text(max_size=3), inside, max_size=2),
        st.dictionaries(TAGS, inside, min_size=1, max_size=1),
    ),
    max_leaves=6,
)
DEEP = st.builds(
    lambda pair, levels: pair[0] * levels + pair[1] * levels,
    st.sampled_from([("[", "]"), ('{"a":', "}"), ('{"$tuple":[', "]}")]),
    st.sampled_from([50, 99, 100, 101, 150, 300, 450, 700, 900, 990, 2000]),
).map(lambda text: text.replace(":}", ":1}").encode())
VALUES = st.one_of(
    JSON.map(lambda value: json.dumps(value).encode()),
    DEEP,
    st.binary(max_size=10),
    st.just(b'{"$decimal":"NaN"}'),
    st.sampled_from([b"1e999", b"NaN", b"[1e999]", b"[-Infinity]", b'["\\ud800"]', b'"\\ud800"']),
)
NAMES = st.sampled_from(
    [
        *("=a", "=b", "=", "", "a", "=_session_expiry", "=_permanent", "=_flashes", "=new"),
        *("=items", "=save", "=__class__", "=get", "=1", "=\n"),
    ]
)
FIELDS = st.dictionaries(NAMES, VALUES, max_size=3)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(
    FIELDS,
    st.none() | HEADS | st.binary(max_size=10),
    st.none() | st.binary(max_size=5),
    st.booleans(),
    st.lists(st.sampled_from(HOWS), min_size=1, max_size=3),
)
def test_no_stored_bytes_become_a_server_error(
    visitor: Visitor,
    fields: dict[str, bytes],
    head: bytes | None,
    epoch: bytes | None,
    is_bound: bool,
    hows: list[str],
) -> None:
    visitor.starts_again(is_bound=is_bound)
    visitor.has(fields if head is None else {**fields, ".": head}, epoch)
    assert [visitor.asks(how) for how in hows] == [200] * len(hows)
