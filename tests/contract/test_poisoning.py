"""No request can change what others are sent (RFC 9111 §7.1)."""

from __future__ import annotations

import gzip
import html
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.contract.neutral import Answer, Reply, Seen
from upstash_middleware import CacheRule, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Handler, Served

TEXT = ("content-type", "text/plain")
EVIL = "EVIL.example:8443"
URL_FIELDS = {
    "x-forwarded-host": EVIL,
    "x-original-host": EVIL,
    "x-host": EVIL,
    "x-http-host-override": EVIL,
    "x-forwarded-server": EVIL,
    "x-envoy-original-host": EVIL,
    "forwarded": f'for=192.0.2.1;host="{EVIL}"',
    "x-forwarded-proto": "evil",
    "x-forwarded-scheme": "evil",
    "x-forwarded-ssl": "evil",
    "x-forwarded-port": "6666",
    "x-forwarded-prefix": "/evil",
    "x-forwarded-uri": "/evil",
    "x-forwarded-path": "/evil",
    "x-original-uri": "/evil",
    "x-original-url": "/evil",
    "x-rewrite-url": "/evil",
    "x-envoy-original-path": "/evil?evil=1",
    "x-http-method-override": "EVIL",
}
CLIENT_FIELDS = (
    "x-real-ip",
    "x-forwarded-for",
    "client-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "forwarded",
)
CREDENTIALS = (
    "x-api-key",
    "key",
    "api-key",
    "x-auth-token",
    "x-access-token",
    "x-session-token",
    "remote-user",
    "x-remote-user",
    "x-forwarded-user",
    "x-forwarded-access-token",
    "x-auth-request-email",
    "cf-access-jwt-assertion",
    "proxy-authorization",
)


def cache(*rules: CacheRule, **settings: Any) -> tuple[str, dict[str, Any]]:
    return ("CacheMiddleware", {"cache": list(rules or (CacheRule("/page", ttl=60),)), **settings})


def status_of(answer: Answer) -> str:
    return answer.header("cache-status") or ""


def is_hit(answer: Answer) -> bool:
    return "; hit" in status_of(answer)


def showing(name: str, change: Callable[[str], str] = str) -> Handler:
    """Return a page that shows what a request field says, or nothing if it is not there."""

    def page(seen: Seen) -> Reply:
        shown = change(seen.header(name) or "nothing")
        return Reply(f"<a href={shown}>".encode(), headers=(TEXT,))

    return page


CHANGES: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in lower case": str.lower,
    "without port": lambda value: value.partition(":")[0],
    "as JSON": lambda value: json.dumps(value.replace("/", r"\/")),
    "as HTML": lambda value: html.escape(value).replace(".", "&#46;"),
    "its first label": lambda value: value.partition(".")[0],
}


@pytest.mark.parametrize("profile", ["safe", "conforming"])
@pytest.mark.parametrize("name", URL_FIELDS)
def test_what_a_field_says_of_the_url_is_shown_to_those_alone_who_say_the_same(
    serve: Serve, name: str, profile: str
):
    served = serve(showing(name), cache(cache_profile=profile))
    forged = ((name, URL_FIELDS[name]),)
    evil = served.request("GET", "/page", forged)
    answers = [served.request("GET", "/page") for _ in range(2)]
    assert [answer.body for answer in answers] == [b"<a href=nothing>"] * 2
    assert is_hit(answers[-1])
    assert served.request("GET", "/page", forged).body == evil.body


@pytest.mark.parametrize("change", CHANGES)
def test_it_does_not_matter_how_the_page_changes_a_forwarded_host(serve: Serve, change: str):
    served = serve(showing("x-forwarded-host", CHANGES[change]), cache())
    served.request("GET", "/page", (("x-forwarded-host", EVIL),))
    assert b"nothing" in served.request("GET", "/page").body


def test_a_compressed_page_shows_a_forwarded_host_to_nobody_else(serve: Serve):
    def page(seen: Seen) -> Reply:
        body = gzip.compress((seen.header("x-forwarded-host") or "nothing").encode())
        return Reply(body, headers=(TEXT, ("content-encoding", "gzip")))

    served = serve(page, cache())
    served.request("GET", "/page", (("x-forwarded-host", EVIL),))
    assert gzip.decompress(served.request("GET", "/page").body) == b"nothing"


@pytest.mark.parametrize("redirect", [301, 308])
def test_a_redirect_to_a_forged_host_is_sent_to_nobody_else(serve: Serve, redirect: int):
    def page(seen: Seen) -> Reply:
        host = seen.header("x-forwarded-host") or seen.header("host")
        return Reply(b"", redirect, (("location", f"https://{host}/page/"),))

    served = serve(page, cache())
    served.request("GET", "/page", (("x-forwarded-host", EVIL),))
    assert served.request("GET", "/page").header("location") == "https://shop.example/page/"


def test_behind_a_proxy_that_always_sends_them_pages_are_stored(serve: Serve):
    """Visitors differ by their address alone."""
    served = serve(showing("x-forwarded-host"), cache())

    def visit(address: str) -> Answer:
        fields = (
            ("x-forwarded-host", "www.shop.example"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-for", address),
            ("x-real-ip", address),
            ("forwarded", f"for={address};host=www.shop.example;proto=https"),
        )
        return served.request("GET", "/page", fields, host="backend:8000")

    visit("192.0.2.1")
    answer = visit("192.0.2.2")
    assert is_hit(answer)
    assert answer.body == b"<a href=www.shop.example>"


def test_what_says_the_same_as_the_request_itself_is_no_difference(serve: Serve):
    served = serve(lambda _: Reply(b"page", headers=(TEXT,)), cache())
    served.request("GET", "/page?a=1")
    fields = (
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-proto", "http"),
        ("x-original-uri", "/page?a=1"),
        ("forwarded", "for=192.0.2.1, for=192.0.2.2"),
    )
    assert is_hit(served.request("GET", "/page?a=1", fields))


def test_parameters_that_select_nothing_select_nothing_in_a_forwarded_url_either(serve: Serve):
    served = serve(
        lambda _: Reply(b"page", headers=(TEXT,)),
        cache(CacheRule("/page", ttl=60, ignore_query=("utm_*",))),
    )
    served.request("GET", "/page?utm_x=1", (("x-original-uri", "/shop/page?utm_x=1"),))
    answer = served.request("GET", "/page?utm_x=2", (("x-original-uri", "/shop/page?utm_x=2"),))
    assert is_hit(answer)
    assert not is_hit(served.request("GET", "/page", (("x-original-uri", "/other/page"),)))


def test_a_purge_takes_the_pages_of_every_forwarded_host(serve: Serve):
    def page(seen: Seen) -> Reply:
        if seen.method == "POST":
            assert seen.purge is not None
            seen.purge("/page")
        return Reply(b"page", headers=(TEXT,))

    served = serve(page, cache())
    forwarded = (("x-forwarded-host", "www.shop.example"),)
    served.request("GET", "/page", forwarded)
    assert is_hit(served.request("GET", "/page", forwarded))
    served.request("POST", "/purge")
    assert not is_hit(served.request("GET", "/page", forwarded))


@pytest.mark.parametrize("name", ["x-forwarded-host", "forwarded", "x-original-url"])
def test_thousands_of_forwarded_hosts_take_no_time_and_bypass_the_cache(serve: Serve, name: str):
    value = ",".join(f"evil{number}.example" for number in range(9000))
    body = b"x" * 500_000
    served = serve(lambda _: Reply(body, headers=(TEXT,)), cache())
    began = time.process_time()
    answer = served.request("GET", "/page", ((name, value),))
    assert time.process_time() - began < 1
    assert f'fwd=bypass; detail="{name} of more than 8192 bytes"' in status_of(answer)
    assert not is_hit(served.request("GET", "/page"))


@pytest.mark.parametrize("value", ['for="', "host=a b", "host", 'host="a";;', "host=a;"])
def test_a_forwarded_field_that_cannot_be_parsed_bypasses_the_cache(serve: Serve, value: str):
    """RFC 7239 §4: another parser may read something else."""
    served = serve(showing("forwarded"), cache())
    answer = served.request("GET", "/page", (("forwarded", value),))
    if value == "host=a;":  # only an empty pair at the end
        assert "fwd=uri-miss" in status_of(answer)
    else:
        assert 'fwd=bypass; detail="forwarded cannot be parsed"' in status_of(answer)
    assert served.request("GET", "/page").body == b"<a href=nothing>"


@pytest.mark.parametrize("name", CLIENT_FIELDS)
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_page_that_shows_a_clients_address_is_not_stored(serve: Serve, name: str, coding: str):
    def page(seen: Seen) -> Reply:
        body = (seen.header(name) or "nobody").upper().encode()
        if coding == "gzip":
            return Reply(gzip.compress(body), headers=(TEXT, ("content-encoding", "gzip")))
        return Reply(body, headers=(TEXT,))

    served = serve(page, cache())
    for address in ("192.0.2.66", "2001:db8::66"):
        value = f'for="[{address}]"' if name == "forwarded" and ":" in address else address
        value = f"for={address}" if name == "forwarded" and ":" not in address else value
        first = served.request("GET", "/page", ((name, value),))
        assert "stored" not in status_of(first)
        assert not is_hit(served.request("GET", "/page", (("x-a", "1"),)))
        served.request("POST", "/page")  # which invalidates


def test_a_page_that_shows_an_address_in_a_field_is_not_stored_and_says_why(serve: Serve):
    def page(seen: Seen) -> Reply:
        return Reply(b"page", headers=(TEXT, ("x-seen", seen.header("x-real-ip") or "nobody")))

    served = serve(page, cache())
    answer = served.request("GET", "/page", (("x-real-ip", "192.0.2.66"),))
    assert 'detail="shows the client\'s address"' in status_of(answer)
    assert served.request("GET", "/page").header("x-seen") == "nobody"


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("<script>", "X-Forwarded-For contains values that are not addresses"),
        ("192.0.2.1, evil.example", "X-Forwarded-For contains values that are not addresses"),
        (", ".join(f"192.0.2.{n}" for n in range(99)), "more than 16 addresses of clients"),
        (", ".join(["192.0.2.1"] * 999), "X-Forwarded-For is too long"),
    ],
    ids=["text", "name", "many", "long"],
)
def test_what_is_no_address_of_a_client_keeps_the_page_from_being_stored(
    serve: Serve, value: str, detail: str
):
    """However the page changes it; what is stored already is sent as ever."""
    served = serve(showing("x-forwarded-for", str.upper), cache())
    answer = served.request("GET", "/page", (("x-forwarded-for", value),))
    assert status_of(answer) == f'upstash-middleware; fwd=uri-miss; detail="{detail}"'
    assert served.request("GET", "/page").body == b"<a href=NOTHING>"
    assert is_hit(served.request("GET", "/page", (("x-forwarded-for", value),)))


def test_a_page_that_varies_by_the_clients_address_may_show_it(serve: Serve):
    """RFC 9111 §4.1."""

    def page(seen: Seen) -> Reply:
        body = (seen.header("x-real-ip") or "nobody").encode()
        return Reply(body, headers=(TEXT, ("vary", "X-Real-IP")))

    served = serve(page, cache())
    address = (("x-real-ip", "192.0.2.66"),)
    served.request("GET", "/page", address)
    assert is_hit(served.request("GET", "/page", address))
    assert served.request("GET", "/page").body == b"nobody"


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_page_for_a_credential_is_sent_to_nobody_else(serve: Serve, name: str):
    """As RFC 9111 §3.5 has it for Authorization; a rule's own ttl is not enough."""
    served = serve(showing(name), cache())
    ada = served.request("GET", "/page", ((name, "ada"),))
    assert 'fwd=uri-miss; detail="request with ' in status_of(ada)
    assert f"request with {name}" in status_of(ada).lower()
    assert served.request("GET", "/page", ((name, "bob"),)).body == b"<a href=bob>"
    assert served.request("GET", "/page").body == b"<a href=nothing>"


def test_a_page_of_nobodys_is_sent_to_those_with_a_credential_too(serve: Serve):
    """RFC 9111 §4: nothing about the request forbids it."""
    served = serve(lambda _: Reply(b"page", headers=(TEXT,)), cache())
    served.request("GET", "/page")
    assert is_hit(served.request("GET", "/page", (("x-api-key", "ada"),)))


def test_a_rule_can_have_requests_with_a_session_bypass_the_cache(serve: Serve):
    """Cache-Status says so (RFC 9211 §2.8)."""
    rule = CacheRule(
        "/page", ttl=60, bypass=lambda asked: "session=" in (asked.headers.get("cookie") or "")
    )
    served = serve(showing("cookie"), cache(rule))
    served.request("GET", "/page")
    answer = served.request("GET", "/page", (("cookie", "session=ada"),))
    assert answer.body == b"<a href=session=ada>"
    assert status_of(answer) == 'upstash-middleware; fwd=bypass; detail="bypass of the rule"'
    assert is_hit(served.request("GET", "/page", (("cookie", "theme=dark"),)))


@pytest.mark.parametrize("control", ["public", "s-maxage=60", "must-revalidate"])
def test_a_page_for_a_credential_may_say_that_it_is_for_all(serve: Serve, control: str):
    """RFC 9111 §3.5."""
    served = serve(
        lambda _: Reply(b"page", headers=(TEXT, ("cache-control", f"max-age=60, {control}"))),
        cache(),
    )
    key = (("x-api-key", "ada"),)
    served.request("GET", "/page", key)
    assert is_hit(served.request("GET", "/page", key))


@pytest.mark.parametrize("how", ["vary", "rule", "user"])
def test_a_page_for_a_credential_that_selects_it_is_stored_for_it(serve: Serve, how: str):
    """RFC 9111 §4.1."""
    rules = {
        "vary": CacheRule("/page", ttl=60),
        "rule": CacheRule("/page", ttl=60, vary_headers=("X-Api-Key",)),
        "user": CacheRule("/page", ttl=60, user=lambda asked: asked.headers.get("x-api-key")),
    }

    def page(seen: Seen) -> Reply:
        vary = (("vary", "X-Api-Key"),) if how == "vary" else ()
        return Reply((seen.header("x-api-key") or "nobody").encode(), headers=(TEXT, *vary))

    served = serve(page, cache(rules[how]))
    for name in ("ada", "bob"):
        served.request("GET", "/page", (("x-api-key", name),))
        answer = served.request("GET", "/page", (("x-api-key", name),))
        assert is_hit(answer)
        assert answer.body == name.encode()


def test_a_credential_field_that_is_empty_names_nobody(serve: Serve):
    served = serve(lambda _: Reply(b"page", headers=(TEXT,)), cache())
    served.request("GET", "/page", (("x-remote-user", ""),))
    assert is_hit(served.request("GET", "/page"))


def test_in_profile_conforming_vary_alone_decides_about_credentials(serve: Serve):
    """RFC 9111 §3.5 is about Authorization."""
    served = serve(lambda _: Reply(b"page", headers=(TEXT,)), cache(cache_profile="conforming"))
    served.request("GET", "/page", (("x-api-key", "ada"),))
    assert is_hit(served.request("GET", "/page"))


def given_in(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **fields: list[str]
) -> dict[str, Any]:
    """Give settings as arguments (in Django: in its settings), in a file, in the environment."""
    if place == "environment":
        for name, names in fields.items():
            monkeypatch.setenv(f"UPSTASH_MIDDLEWARE_{name.upper()}", " , ".join(names))
        return {}
    if place == "file":
        file = tmp_path / "rules.toml"
        file.write_text("".join(f"{name} = {names!r}\n" for name, names in fields.items()))
        return {"config": str(file)}
    return dict(fields)


PLACES = ["arguments", "file", "environment"]


def served_with(serve: Serve, name: str, **settings: Any) -> Served:
    return serve(showing(name), cache(**settings))


@pytest.mark.parametrize("place", PLACES)
def test_settings_name_more_fields_that_are_credentials(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
):
    given = given_in(place, monkeypatch, tmp_path, credential_fields=["X-Company-Token", "X-B"])
    for name in ("x-company-token", "x-api-key"):
        served = served_with(serve, name, **given)
        answer = served.request("GET", "/page", ((name, "ada"),))
        assert "request with X-" in status_of(answer)
        assert served.request("GET", "/page").body == b"<a href=nothing>"
        served.request("POST", "/page")  # which invalidates


@pytest.mark.parametrize("place", PLACES)
def test_settings_name_more_fields_that_pages_reflect(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
):
    given = given_in(place, monkeypatch, tmp_path, reflected_fields=["X-Brand"])
    for name in ("x-brand", "x-forwarded-host"):
        served = served_with(serve, name, **given)
        served.request("GET", "/page", ((name, "evil"),))
        assert served.request("GET", "/page").body == b"<a href=nothing>"
        answer = served.request("GET", "/page", ((name, "evil"),))
        assert is_hit(answer)
        assert answer.body == b"<a href=evil>"
        served.request("POST", "/page")  # which invalidates


@pytest.mark.parametrize("name", ["credential_fields", "reflected_fields"])
@pytest.mark.parametrize("value", ["X-Brand", ["X Brand"], [""], [7]], ids=str)
def test_what_names_no_fields_is_refused_by_the_name_of_the_setting(
    serve: Serve, name: str, value: Any
):
    with pytest.raises((ConfigurationError, ImproperlyConfigured), match=name):
        serve(showing("x-brand"), cache(**{name: value})).request("GET", "/page")


def test_a_variable_of_the_environment_that_names_no_fields_is_refused_by_name(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UPSTASH_MIDDLEWARE_CREDENTIAL_FIELDS", "X-A, X B")
    message = "UPSTASH_MIDDLEWARE_CREDENTIAL_FIELDS: 'X B' should be a field name such as"
    with pytest.raises((ConfigurationError, ImproperlyConfigured), match=message):
        serve(showing("x-a"), cache()).request("GET", "/page")


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2001:db8::5", "2001%3Adb8%3A%3A5"),
        ("2001:db8::5", "2001:0db8:0000:0000:0000:0000:0000:0005"),
        ("::ffff:9.8.7.6", "::ffff:908:706"),
        ("unknown", "UnKnOwN"),
        ("fe80::1%evil", "evil"),
    ],
)
def test_a_page_that_shows_an_address_in_another_spelling_is_not_stored(
    serve: Serve, sent: str, shown: str
):
    cache = ("CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)]})
    served = serve(lambda _: Reply(f"you are {shown}".encode()), cache)
    served.request("GET", "/page", (("x-forwarded-for", sent),))
    assert "fwd=" in (served.request("GET", "/page").header("cache-status") or "")


@pytest.mark.parametrize("value", ['foo="a, private', 'max-age=60, x=", no-store'])
def test_a_directive_behind_an_open_quote_keeps_the_response_from_being_stored(
    serve: Serve, value: str
):
    cache = ("CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)]})
    served = serve(lambda _: Reply(b"page", headers=(TEXT, ("cache-control", value))), cache)
    served.request("GET", "/page")
    assert "fwd=" in (served.request("GET", "/page").header("cache-status") or "")


@pytest.mark.parametrize(
    "value",
    [
        "private; max-age=60",
        "no-store; no-cache",
        "Private max-age=60",
        "max-age=60; private",
        "public; no-store",
        "private:",
        "public; max-age=0",
        "public max-age=0",
        "max-age=60; s-maxage=0",
    ],
)
def test_a_directive_without_a_comma_before_it_keeps_the_response_from_being_stored(
    serve: Serve, value: str
):
    cache = ("CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)]})
    served = serve(lambda _: Reply(b"page", headers=(TEXT, ("cache-control", value))), cache)
    served.request("GET", "/page")
    assert "fwd=" in (served.request("GET", "/page").header("cache-status") or "")


@pytest.mark.parametrize("value", ["max-age = 60", "max-age=60, a b"])
def test_a_malformed_directive_that_forbids_nothing_leaves_the_rules_lifetime(
    serve: Serve, value: str
):
    cache = ("CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)]})
    served = serve(lambda _: Reply(b"page", headers=(TEXT, ("cache-control", value))), cache)
    served.request("GET", "/page")
    status = served.request("GET", "/page").header("cache-status") or ""
    assert "; hit" in status


@pytest.mark.parametrize("value", ["Cookie;", "Accept Cookie", "Accept, Cookie:"])
def test_a_response_whose_vary_cannot_be_read_is_not_stored(serve: Serve, value: str):
    cache = ("CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)]})
    served = serve(lambda _: Reply(b"page", headers=(TEXT, ("vary", value))), cache)
    served.request("GET", "/page")
    assert "fwd=" in (served.request("GET", "/page").header("cache-status") or "")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    "narrowed",
    [
        {"keep_query": ("q",)},
        {"ignore_query": ("next", "utm_*")},
        {"ignore_query": ("next",), "sort_query": True},
    ],
)
@pytest.mark.parametrize("foreign", ["&next=//evil.example", "&&&&"])
def test_a_redirect_is_not_stored_for_a_query_of_which_a_part_selects_nothing(
    serve: Serve, status: int, narrowed: Any, foreign: str
):
    """Frameworks add a slash to the path and repeat the query as it was sent."""

    def redirect(seen: Seen) -> Reply:
        fields = (("location", f"/search/?{seen.query}"), ("cache-control", "max-age=60"))
        return Reply(b"", status, headers=fields)

    cache = ("CacheMiddleware", {"cache": [CacheRule("/search", ttl=60, **narrowed)]})
    served = serve(redirect, cache)
    served.request("GET", f"/search?q=tea{foreign}")
    answer = served.request("GET", "/search?q=tea")
    assert answer.header("location") == "/search/?q=tea"
    assert "; hit" in (served.request("GET", "/search?q=tea").header("cache-status") or "")
