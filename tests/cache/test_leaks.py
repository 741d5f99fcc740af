"""No identity is ever sent what was rendered for another, unless the response allowed it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from upstash_middleware.messages import Headers, HTTPRequest

IDENTITIES = st.fixed_dictionaries(
    {
        "host": st.sampled_from(["shop.test", "SHOP.test:80", "other.test"]),
        "query": st.sampled_from(["", "a=1"]),
    },
    optional={
        "cookie": st.sampled_from(
            ["session=ann", "session=bob", "_ga=1", "", "_ga=1; session=ann"]
        ),
        "authorization": st.sampled_from(["Bearer ann", "Bearer bob"]),
        "accept_language": st.sampled_from(["de", "en", "DE"]),
        "x_forwarded_host": st.just("evil.test"),
        "x_forwarded_for": st.sampled_from(["192.0.2.66", "192.0.2.67"]),
        "x_api_key": st.sampled_from(["ann", "bob"]),
    },
)
RESPONSES = st.fixed_dictionaries(
    {
        "cache_control": st.lists(
            st.sampled_from(
                [
                    *("s-maxage=60", "public", "must-revalidate"),
                    *("private", "Private", 'private="x"', "no-store", "no-cache"),
                ]
            ),
            max_size=2,
        ).map(lambda others: ", ".join(["max-age=60", *others]))
    },
    optional={
        "vary": st.sampled_from(
            ["Cookie", "Authorization", "Accept-Language", "*", "Cookie, *", "X-Forwarded-Host"]
        ),
        "set_cookie": st.just("session=new"),
        "etag": st.just('"same"'),
    },
)


@dataclass
class Rendered:
    """A render: for whom, and what its response allowed."""

    asked: HTTPRequest
    fields: dict[str, str] = field(default_factory=dict)

    def allows(self, asked: HTTPRequest) -> str | None:
        """Return what forbids to send this to a request, None if nothing does."""
        control, vary = self.fields["cache_control"].lower(), self.fields.get("vary", "")
        mine, theirs = _shown(self.asked), _shown(asked)
        forbidden = {
            "another resource": _resource(self.asked) != _resource(asked),
            "no-store": "no-store" in control,
            "private": "private" in control.replace('private="x"', ""),
            "no-cache": "no-cache" in control,
            "Set-Cookie": "set_cookie" in self.fields,
            "Vary: *": "*" in vary,
            "Authorization": "authorization" in mine
            and not any(word in control for word in ("public", "s-maxage", "must-revalidate")),
            "cookies": "cookie" in mine and "Cookie" not in vary,
            "credentials": "x-api-key" in mine
            and not any(word in control for word in ("public", "s-maxage", "must-revalidate")),
            "reflection": mine.get("x-forwarded-host") != theirs.get("x-forwarded-host"),
            "address": mine.get("x-forwarded-for") == "192.0.2.66",
        }
        for name in ("cookie", "authorization", "accept-language", "x-forwarded-host"):
            same = (mine.get(name) or "").lower() == (theirs.get(name) or "").lower()
            present = (name in mine) == (name in theirs)
            forbidden[f"Vary: {name}"] = name in vary.lower() and not (same and present)
        return next((reason for reason, holds in forbidden.items() if holds), None)


def _shown(asked: HTTPRequest) -> Headers:
    """Return the fields that the application may see: without the cookie of analytics."""
    headers = asked.headers
    if (cookie := headers.get("cookie")) is None or "_ga=1" not in cookie:
        return headers
    others = cookie.removeprefix("_ga=1").removeprefix("; ")
    return headers.setting("cookie", others) if others else headers.without("cookie")


def _resource(asked: HTTPRequest) -> tuple[str, str, str]:
    return asked.host.lower().removesuffix(":80"), asked.path, asked.query


def asked_by(identity: dict[str, Any]) -> HTTPRequest:
    """Make a request, its host in lower case as adapters hand it over."""
    return request(**identity | {"host": identity["host"].lower()})


@pytest.mark.parametrize("l1_bytes", [0, 1024 * 1024])
@settings(max_examples=300)
@given(visits=st.lists(st.tuples(IDENTITIES, RESPONSES), min_size=2, max_size=12))
def test_nobody_is_sent_what_was_rendered_for_somebody_else(l1_bytes, visits):
    """Random cookies, credentials, languages, hosts, and whatever the responses say of them.

    From Redis, and from the layer in this process.
    """
    site, renders = Site(options={"l1_bytes": l1_bytes}), []
    for identity, fields in visits:
        asked = asked_by(identity)

        def app(seen, asked=asked, fields=fields):
            assert "_ga" not in (seen.headers.get("cookie") or "")
            renders.append(Rendered(asked, fields))
            reflected = seen.headers.get("x-forwarded-host") or ""
            if seen.headers.get("x-forwarded-for") == "192.0.2.66":
                reflected += " 192.0.2.66"
            return reply(f"{len(renders) - 1} {reflected}".encode(), **fields)

        site.app = app
        answer = site.visit(asked)
        if answer.hit:
            assert renders[int(answer.body.split()[0])].allows(asked) is None


@pytest.mark.parametrize("l1_bytes", [0, 1024 * 1024])
@settings(max_examples=100)
@given(identities=st.lists(IDENTITIES, min_size=2, max_size=12))
def test_a_private_cache_is_its_users_alone(l1_bytes, identities):
    """Whatever else a request carries."""
    site = Site(
        (CacheRule("/{rest:path}", user=lambda seen: seen.headers.get("authorization")),),
        options={"l1_bytes": l1_bytes},
    )
    site.app = lambda seen: reply(
        (seen.headers.get("authorization") or "nobody").encode(),
        cache_control="private, max-age=60",
    )
    for identity in identities:
        asked = asked_by(identity)
        expected = (asked.headers.get("authorization") or "nobody").encode()
        assert site.visit(asked).body == expected


@pytest.mark.parametrize("value", ["session=ann", "Bearer ann", "secret-tenant"])
def test_no_secret_of_a_request_is_ever_written(value):
    """Not in keys, and not in values beside what the response itself repeats."""
    site = Site((CacheRule("/page", vary_headers=("X-Tenant",), vary_cookies=("session",)),))
    site.app = lambda _: reply(cache_control="public, max-age=60", vary="Authorization")
    site.visit(request(cookie="session=ann", authorization="Bearer ann", x_tenant="secret-tenant"))
    assert site.store.values
    for key, (stored, _) in site.store.values.items():
        assert value not in key
        assert value.encode() not in stored
