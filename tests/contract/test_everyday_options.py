"""Options of cache rules for every day, the same in every framework."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Answer, Fields, Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.clocks import MovableClock
    from tests.contract.conftest import Serve
    from upstash_middleware.local import LocalUpstash


TAGGED: Fields = (("content-type", "text/plain"), ("etag", '"v1"'))


def counting(*fields: tuple[str, str], status: int = 200) -> Callable[[Seen], Reply]:
    """Return a handler whose body tells how often it was called."""
    numbers = itertools.count(1)
    return lambda _: Reply(b"%d" % next(numbers), status, (("content-type", "text/plain"), *fields))


def cache(**fields: Any) -> tuple[str, Any]:
    return "CacheMiddleware", {"cache": [{"path": "/{name}", **fields}]}


def status_of(answer: Answer) -> str:
    return answer.header("cache-status") or ""


def was_hit(answer: Answer) -> bool:
    return "; hit" in status_of(answer)


# --- bypass as text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bypass", "target", "fields"),
    [
        ("cookie:sessionid", "/page", (("cookie", "a=1; sessionid=2"),)),
        ("cookie:sessionid", "/page", (("cookie", "sessionid="),)),
        ("header:Authorization", "/page", (("authorization", "Bearer 1"),)),
        ("query:preview", "/page?a=1&preview=yes", ()),
        ("query:preview", "/page?previe%77", ()),
        (["query:preview", "cookie:sessionid"], "/page", (("cookie", "sessionid=2"),)),
    ],
)
def test_what_a_rule_names_bypasses_the_cache(
    serve: Serve, bypass: Any, target: str, fields: Fields
):
    served = serve(counting(), cache(ttl=60, bypass=bypass))
    served.request("GET", "/page")
    answer = served.request("GET", target, fields)
    assert answer.body == b"2"
    named = bypass if isinstance(bypass, str) else bypass[1]
    assert f'fwd=bypass; detail="bypass of the rule: {named.lower()}"' in status_of(answer)
    assert served.request("GET", target, fields).body == b"3"
    assert was_hit(served.request("GET", "/page"))


def test_what_a_rule_does_not_name_is_answered_from_the_cache(serve: Serve):
    served = serve(counting(), cache(ttl=60, bypass=["cookie:sessionid", "query:preview"]))
    for target, fields in (
        ("/page", (("cookie", "sessionid2=1"),)),
        ("/page", (("x-sessionid", "1"),)),
        ("/page?a=preview", ()),
    ):
        served.request("GET", target)
        assert was_hit(served.request("GET", target, fields))


# --- ttl by status, and how many errors are stored ------------------------------------------------


def test_a_ttl_by_status_is_for_those_statuses(serve: Serve, upstash: LocalUpstash):
    """The keys may be text, as in TOML."""

    def handler(request: Seen) -> Reply:
        return Reply(b"page", int(request.path[1:]))

    served = serve(handler, cache(ttl={200: 60, "404": 5}))
    for path in ("/200", "/404", "/301", "/410"):
        served.request("GET", path)
    hits = [was_hit(served.request("GET", path)) for path in ("/200", "/404", "/301", "/410")]
    assert hits == [True, True, False, False]
    upstash.advance(6)
    assert [was_hit(served.request("GET", path)) for path in ("/200", "/404")] == [True, False]


def test_random_paths_cause_few_writes(serve: Serve, upstash: LocalUpstash):
    """A bound for each rule, process and minute; pages that exist are stored beyond it."""

    def handler(request: Seen) -> Reply:
        return Reply(b"page", 200 if request.path == "/there" else 404)

    served = serve(handler, cache(ttl={200: 60, 404: 5}, errors_per_minute=3))
    answers = [served.request("GET", f"/{number}") for number in range(6)]
    assert ["stored" in status_of(answer) for answer in answers[:3]] == [True] * 3
    refused = 'fwd=uri-miss; detail="3 errors of its rule were stored this minute"'
    assert [refused in status_of(answer) for answer in answers] == [False] * 3 + [True] * 3
    upstash.reset_bill()
    served.request("GET", "/7")
    assert upstash.bill().commands == 1, "the lookup, and no write"
    served.request("GET", "/there")
    assert was_hit(served.request("GET", "/there"))
    upstash.advance(60)
    assert "stored" in status_of(served.request("GET", "/8"))


def test_sixty_errors_are_stored_in_a_minute_unless_the_rule_says_otherwise(serve: Serve):
    served = serve(lambda _: Reply(b"", 410), cache(ttl={410: 5}))
    answers = [served.request("GET", f"/{number}") for number in range(62)]
    assert ["detail" in status_of(answer) for answer in answers] == [False] * 60 + [True] * 2


# --- max_body -------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "streamed"])
def test_a_rule_may_store_larger_or_only_smaller_bodies_than_the_others(
    serve: Serve, announced: bool
):
    def handler(request: Seen) -> Reply:
        body = b"x" * 100
        return Reply(body if announced else iter([body[:50], body[50:]]))

    rules = [
        CacheRule("/small", ttl=60, max_body=99),
        CacheRule("/exact", ttl=60, max_body=100),
        CacheRule("/other", ttl=60),
    ]
    served = serve(handler, ("CacheMiddleware", {"cache": rules, "cache_max_body": 99}))
    for path, hit in (("/small", False), ("/exact", True), ("/other", False)):
        first, second = served.request("GET", path), served.request("GET", path)
        assert was_hit(second) is hit
        assert first.body == second.body == b"x" * 100
    if announced:
        assert 'detail="body above 99 bytes"' in status_of(served.request("GET", "/small"))


# --- ignore_cookies -------------------------------------------------------------------------------


def seen_cookies(request: Seen) -> Reply:
    """Answer with the Cookie field and two cookies as the framework shows them."""
    return Reply(
        f"{request.header('cookie')} {request.cookies('_ga')} {request.cookies('b')}".encode()
    )


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("_ga=GA1.2.3; _ga_ABC=GS1; _fbp=fb.1", "None None None"),
        ("_ga=1; b=2; _gid=3", "b=2 None 2"),
        ("b=2; _ga=1", "b=2 None 2"),
        ("_gax=1; b=2", "_gax=1; b=2 None 2"),
    ],
)
@pytest.mark.parametrize("name", ["UpstashMiddleware", "CacheMiddleware"])
def test_the_application_does_not_get_cookies_of_analytics(
    serve: Serve, name: str, sent: str, seen: str
):
    rule = CacheRule("/{name}", ttl=60)
    layer: dict[str, Any] = {"cache": [rule]}
    if name == "UpstashMiddleware":
        layer["default_limit"] = None
    served = serve(seen_cookies, (name, layer))
    assert served.request("GET", "/page", (("cookie", sent),)).body.decode() == seen


def test_a_request_with_ignored_cookies_alone_counts_as_one_without(serve: Serve):
    served = serve(counting(), cache(ttl=60))
    stored = served.request("GET", "/page", (("cookie", "_ga=1; _hjSession_7=x"),))
    assert "stored" in status_of(stored)
    assert was_hit(served.request("GET", "/page"))
    other = served.request("GET", "/other", (("cookie", "_ga=1; theme=dark"),))
    assert 'detail="request with cookies, and no Vary: Cookie"' in status_of(other)


def test_visitors_with_other_ignored_cookies_share_a_page_that_varies_by_cookie(serve: Serve):
    served = serve(counting(("vary", "Cookie")), cache(ttl=60))
    for sent in ("_ga=1; b=2", "_ga=2; b=2", "b=2", "b=2; _gid=3"):
        assert served.request("GET", "/page", (("cookie", sent),)).body == b"1"
    assert served.request("GET", "/page", (("cookie", "b=3"),)).body == b"2"


def test_a_rule_adds_to_the_list_of_analytics_in_place_of_the_setting(serve: Serve):
    def handler(request: Seen) -> Reply:
        return Reply((request.header("cookie") or "none").encode())

    rules = [{"path": "/a", "ttl": 60, "ignore_cookies": ["track_*"]}, {"path": "/b", "ttl": 60}]
    served = serve(handler, ("CacheMiddleware", {"cache": rules, "cache_ignore_cookies": ["x"]}))
    sent = (("cookie", "_ga=1; track_9=2; x=3"),)
    assert served.request("GET", "/a", sent).body == b"x=3"
    assert served.request("GET", "/b", sent).body == b"track_9=2"


@pytest.mark.parametrize("more", [{"cache_profile": "conforming"}, {"cache_ignore_cookies": ()}])
def test_without_a_list_the_application_gets_all_cookies(serve: Serve, more: dict[str, Any]):
    served = serve(
        seen_cookies, ("CacheMiddleware", {"cache": [CacheRule("/page", ttl=60)], **more})
    )
    answer = served.request("GET", "/page", (("cookie", "_ga=1; b=2"),))
    assert answer.body == b"_ga=1; b=2 1 2"


def test_what_passes_by_the_cache_is_passed_on_as_it_came(serve: Serve):
    """Unsafe methods, other paths, and what a rule's bypass names."""
    layer = {"cache": [CacheRule("/page", ttl=60, bypass="query:preview")]}
    served = serve(seen_cookies, ("CacheMiddleware", layer))
    for method, target in (("POST", "/page"), ("GET", "/other"), ("GET", "/page?preview")):
        answer = served.request(method, target, (("cookie", "_ga=1; b=2"),))
        assert answer.body == b"_ga=1; b=2 1 2"


def test_cookies_that_select_a_response_are_not_ignored(serve: Serve):
    served = serve(seen_cookies, cache(ttl=60, vary_cookies=["_ga"]))
    assert served.request("GET", "/page", (("cookie", "_ga=1; _gid=2"),)).body == b"_ga=1 1 None"
    assert served.request("GET", "/page", (("cookie", "_ga=2"),)).body == b"_ga=2 2 None"
    assert was_hit(served.request("GET", "/page", (("cookie", "_ga=1; _gid=3"),)))


def test_a_field_that_parsers_read_differently_is_passed_on_as_it_came(serve: Serve):
    served = serve(lambda asked: Reply((asked.header("cookie") or "").encode()), cache(ttl=60))
    sent = 'b="1; _ga=2"; _gid=3'
    assert served.request("GET", "/page", (("cookie", sent),)).body == sent.encode()


def test_a_validated_page_is_requested_without_them(serve: Serve, upstash: LocalUpstash):
    seen: list[str | None] = []

    def handler(request: Seen) -> Reply:
        seen.append(request.header("cookie"))
        return Reply(b"", 304) if request.header("if-none-match") else Reply(b"a", 200, TAGGED)

    served = serve(handler, cache(ttl=5, bypass=lambda _: False))
    served.request("GET", "/page", (("cookie", "_ga=1"),))
    upstash.advance(6)
    assert served.request("GET", "/page", (("cookie", "_ga=2"),)).body == b"a"
    assert seen == [None, None]


# --- Why was this page not cached? ----------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return what was logged of responses that were not stored."""
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if vars(record).get("upstash_event") == "CacheNotStored"
    ]


def test_the_first_response_that_is_not_stored_is_logged_with_the_setting_that_would_change_it(
    serve: Serve, caplog: pytest.LogCaptureFixture
):
    """The most frequent reason is a cookie."""
    rules = [{"path": "/a/{n}", "ttl": 60}, {"path": "/b/{n}", "ttl": 60}]
    served = serve(counting(), ("CacheMiddleware", {"cache": rules}))
    for path in ("/a/1", "/a/1", "/b/1"):
        served.request("GET", path, (("cookie", "_ga=1; visitor=2"),))
    (level, first), (_, second) = lines(caplog)
    assert level == "WARNING"
    assert first.startswith(
        "cache[0]: the response for /a/1 was not stored: the request has cookies ('visitor')"
    )
    assert "set ignore_cookies=('visitor',)" in first
    assert second.startswith("cache[1]: the response for /b/1 ")
    assert served.request("GET", "/a/3").body == b"4"
    assert len(lines(caplog)) == 2


def test_each_rule_and_reason_is_logged_for_three_paths_an_hour(
    serve: Serve, caplog: pytest.LogCaptureFixture, clock: MovableClock
):
    """So that a robot's odd request does not use up the line about the real pages."""
    served = serve(counting(), cache(ttl=60))
    sent = (("cookie", "visitor=2"),)
    for path in ("/odd", "/odd", "/a", "/b", "/c", "/d"):
        served.request("GET", path, sent)
    said = [line.split()[4] for _, line in lines(caplog)]
    assert said == ["/odd", "/a", "/b"]
    clock.advance(3601)
    served.request("GET", "/c", sent)
    assert len(lines(caplog)) == 4


def test_where_user_finds_nobody_that_is_the_reason(serve: Serve, caplog: pytest.LogCaptureFixture):
    """No other setting would help a request whose user the function should have found."""
    served = serve(counting(), cache(user=lambda _: None, ttl=60))
    for sent in (("cookie", "session=1"), ("authorization", "Bearer 1"), ("x-api-key", "1")):
        served.request("GET", f"/{sent[0]}", (sent,))
    assert len(lines(caplog)) == 3
    for _, line in lines(caplog):
        assert "the function of user= returned no user for this request, and " in line
        assert "return its id from the function of user=" in line


@pytest.mark.parametrize(
    ("reply", "sent", "said"),
    [
        (Reply(b"", 200, (("set-cookie", "a=1"),)), (), "the response sets a cookie"),
        (Reply(b"", 404), (), "set ttl={200: 60, 404: 5}"),
        (Reply(b"x" * 9), (), "raise the rule's max_body"),
        (Reply([b"x" * 5, b"x" * 4]), (), "raise the rule's max_body"),
        (Reply(b""), (("authorization", "Bearer 1"),), "the request has Authorization"),
        (Reply(b""), (("x-api-key", "1"),), "the request has X-Api-Key"),
        (
            Reply(b"", 302, (("location", "/"), ("cache-control", "max-age=9"))),
            (),
            "set keep_query or ignore_query",
        ),
    ],
)
def test_each_reason_has_its_remedy(
    serve: Serve, caplog: pytest.LogCaptureFixture, reply: Reply, sent: Fields, said: str
):
    served = serve(lambda _: reply, cache(ttl=60, max_body=8, ignore_query=["utm_*"]))
    served.request("GET", "/page?utm_source=a", sent)
    ((level, line),) = lines(caplog)
    assert (level, said in line) == ("WARNING", True), line


@pytest.mark.parametrize("control", ["no-store", "private", "max-age=0"])
def test_what_a_response_says_itself_is_no_warning(
    serve: Serve, caplog: pytest.LogCaptureFixture, control: str
):
    caplog.set_level("INFO", "upstash_middleware")
    served = serve(counting(("cache-control", control)), cache(ttl=60))
    served.request("GET", "/page")
    ((level, _),) = lines(caplog)
    assert level == "INFO"


def test_a_rule_without_a_ttl_is_for_pages_that_state_their_own(
    serve: Serve, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "upstash_middleware")
    serve(counting(), cache()).request("GET", "/page")
    ((level, line),) = lines(caplog)
    assert level == "INFO"
    assert "neither the response nor the rule says for how long" in line


def test_cookies_of_any_name_make_one_short_line(serve: Serve, caplog: pytest.LogCaptureFixture):
    served = serve(counting(), cache(ttl=60))
    names = ["a" * 500, "b\x7f", "café", "\x1b[31m", *(f"n{number}" for number in range(50))]
    sent = "; ".join(f"{name}=1" for name in names).encode().decode("latin-1")
    served.request("GET", "/page", (("cookie", sent),))
    ((_, line),) = lines(caplog)
    assert "('n0', 'n1', 'n2')" in line
    assert line.isprintable()


@pytest.mark.parametrize("sent", ["=evil", "\x01=1", "a" * 500 + "=1"])
def test_the_log_names_no_cookie_that_nobody_could_name(
    serve: Serve, caplog: pytest.LogCaptureFixture, sent: str
):
    served = serve(counting(), cache(ttl=60))
    served.request("GET", "/page", (("cookie", sent),))
    ((_, line),) = lines(caplog)
    assert "the request has cookies, and" in line
    assert "set ignore_cookies; name those" in line


# --- The debug field ----------------------------------------------------------------------------

SECRET = "a secret of more than 32 characters".replace(" ", "-")
DEBUG: Fields = (("upstash-cache-debug", SECRET),)


def debugged(**fields: Any) -> tuple[str, Any]:
    return "CacheMiddleware", {"cache": [{"path": "/{name}", **fields}], "cache_debug": SECRET}


def test_a_request_with_the_secret_is_told_rule_key_outcome_and_reason(serve: Serve):
    served = serve(
        counting(("cdn-cache-control", "max-age=60"), ("expires", "0")), debugged(ttl=60)
    )
    key = 'key="upstash-middleware:cache:entry:http://shop.example/page"'
    missed = served.request("GET", "/page", DEBUG)
    told = missed.header("upstash-cache-debug") or ""
    assert 'outcome="uri-miss", reason="nothing is stored for this URL"' in told
    assert 'rule="cache[0]"' in told
    assert key in told
    served.request("GET", "/page")
    hit = served.request("GET", "/page", DEBUG)
    told = hit.header("upstash-cache-debug") or ""
    assert 'outcome="hit", reason="it is fresh", rule="cache[0]"' in told
    assert key in told
    assert (missed.body, hit.body) == (b"1", b"2")
    for answer in (missed, hit):
        assert answer.lines("cache-control") == ["private, no-store"]
        assert answer.header("cdn-cache-control") is None
        assert answer.header("expires") is None


def test_the_response_to_it_is_not_stored_and_the_application_does_not_see_the_secret(serve: Serve):
    seen: list[str | None] = []

    def handler(request: Seen) -> Reply:
        seen.append(request.header("upstash-cache-debug"))
        return Reply(b"%d" % len(seen))

    served = serve(handler, debugged(ttl=60))
    served.request("GET", "/page", DEBUG)
    answer = served.request("GET", "/page")
    assert (answer.body, was_hit(answer)) == (b"2", False)
    assert answer.header("cache-control") is None
    assert answer.header("upstash-cache-debug") is None
    assert was_hit(served.request("GET", "/page"))
    assert seen == [None, None]


def test_it_is_told_why_its_response_would_not_be_stored(serve: Serve):
    served = serve(counting(("set-cookie", "a=1")), debugged(ttl=60))
    told = served.request("GET", "/page", DEBUG).header("upstash-cache-debug") or ""
    assert 'not-stored="the response sets a cookie' in told
    told = served.request("POST", "/page", DEBUG).header("upstash-cache-debug") or ""
    assert 'outcome="bypass"' in told
    assert 'reason="unsafe requests invalidate what is stored"' in told


@pytest.mark.parametrize("control", ["private", "no-store"])
def test_what_the_response_says_is_told_and_not_what_its_request_suggests(
    serve: Serve, control: str
):
    """A ttl would change nothing."""
    served = serve(counting(("cache-control", control)), debugged())
    told = served.request("GET", "/page", DEBUG).header("upstash-cache-debug") or ""
    assert f'not-stored="the response says {control} in its Cache-Control' in told
    assert f"leave out {control}" in told
    assert 'reason="nothing is stored for this URL", rule=' in told
    assert "ttl" not in told


def test_it_is_told_that_user_has_found_nobody(serve: Serve):
    served = serve(counting(("cache-control", "private")), debugged(user=lambda _: None))
    told = served.request("GET", "/page", DEBUG).header("upstash-cache-debug") or ""
    assert "the function of user= returned no user for this request, and the response says" in told
    assert "ttl" not in told


@pytest.mark.parametrize(
    "sent",
    [
        (("upstash-cache-debug", SECRET[:-1]),),
        (("upstash-cache-debug", SECRET.upper()),),
        (("upstash-cache-debug", ""),),
        (("upstash-cache-debug", SECRET), ("upstash-cache-debug", SECRET)),
        (("upstash-cache-debug", "caf\xe9"),),
    ],
)
def test_without_the_secret_nothing_is_told(serve: Serve, sent: Fields):
    served = serve(counting(), debugged(ttl=60))
    served.request("GET", "/page", sent)
    answer = served.request("GET", "/page", sent)
    assert was_hit(answer)
    assert answer.header("upstash-cache-debug") is None


def test_without_the_setting_nobody_is_told(serve: Serve):
    served = serve(counting(), cache(ttl=60))
    served.request("GET", "/page", (("upstash-cache-debug", ""),))
    assert was_hit(served.request("GET", "/page", (("upstash-cache-debug", ""),)))


def test_a_debugged_request_works_while_upstash_refuses_calls(
    serve: Serve, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", "not-the-token")
    answer = serve(counting(), debugged(ttl=60)).request("GET", "/page", DEBUG)
    assert answer.body == b"1"
    assert "the store did not answer" in (answer.header("upstash-cache-debug") or "")
