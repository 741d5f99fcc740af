"""The cache key covers what the application can see; an unclear request goes past the cache."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Fields, Served

PLAIN: Fields = (("content-type", "text/plain"),)


def cache(path: str = "/page", profile: str = "safe", **rule: Any) -> tuple[str, dict[str, Any]]:
    rules = [CacheRule(path, ttl=60, **rule)]
    return "CacheMiddleware", {"cache": rules, "cache_profile": profile}


def echo(read: Callable[[Seen], object], *fields: tuple[str, str]) -> Callable[[Seen], Reply]:
    """Return a handler that answers with what it reads of the request, and these fields."""
    return lambda seen: Reply(repr(read(seen)).encode(), headers=(*PLAIN, *fields))


def status(answer: Answer) -> str:
    return answer.header("cache-status") or ""


def was_hit(answer: Answer) -> bool:
    return "; hit" in status(answer)


# --- Cookies -----------------------------------------------------------------------------------


def theme(seen: Seen) -> str | None:
    try:
        return seen.cookies("theme")
    except UnicodeDecodeError:  # Werkzeug raises, and a browser gets a 500
        return "not UTF-8"


UNCLEAR_COOKIES = [
    "theme =evil",
    "theme\t=evil",
    "theme\xa0=evil",
    "\xa0theme=evil",
    "\x0btheme=evil",
    "theme\x1c=evil",
    "theme\x00=evil",
    "the me=evil",
    "theme",
    "=theme",
    '"theme"=evil',
    "theme=light; theme =evil",
    "theme =evil; theme=light",
    'other="; theme=evil',
    'other="x; theme=evil"; last=1',
    'other="\\"; theme=evil"',
]


@pytest.mark.parametrize("cookie", UNCLEAR_COOKIES)
def test_cookies_that_can_be_read_in_two_ways_go_past_the_cache(serve: Serve, cookie: str):
    """RFC 6265 §4.2.1 has one way of writing them; parsers read many more, each its own."""
    served = serve(echo(theme), cache(vary_cookies=("theme",)))
    answer = served.request("GET", "/page", (("cookie", cookie),))
    assert "; fwd=bypass" in status(answer)
    assert served.request("GET", "/page").body == b"None"
    light = (("cookie", "theme=light"),)
    assert served.request("GET", "/page", light).body == b"'light'"
    assert served.request("GET", "/page", light).body == b"'light'"
    assert not was_hit(served.request("GET", "/page", (("cookie", cookie),)))


@pytest.mark.parametrize(
    "cookie",
    [
        "theme=light",
        "a=1; theme=light",
        "theme=light; a=1; b={'x':1}; c=a b; d=\xe4",
        "other =1;  theme=light;; ",
        'a="quoted"; theme=light; b=x"y',
    ],
)
def test_cookies_that_a_rule_does_not_name_select_nothing(serve: Serve, cookie: str):
    """Neither their values nor, where all parsers agree, how they are written."""
    served = serve(lambda _: Reply(b"light", headers=PLAIN), cache(vary_cookies=("theme",)))
    served.request("GET", "/page", (("cookie", "theme=light"),))
    assert was_hit(served.request("GET", "/page", (("cookie", cookie),)))


def test_several_cookies_of_one_name_all_select(serve: Serve):
    """Some frameworks use the first of them, and others the last."""
    served = serve(echo(theme), cache(vary_cookies=("theme",)))
    cookies = ["theme=a; theme=b", "theme=b; theme=a", "theme=a", "theme=b"]
    read = [served.request("GET", "/page", (("cookie", cookie),)).body for cookie in cookies]
    again = [served.request("GET", "/page", (("cookie", cookie),)) for cookie in cookies]
    assert all(map(was_hit, again))
    assert [answer.body for answer in again] == read


BLANKS = st.sampled_from(["", "", " ", "\t", "\xa0", "\x0b", "\x85", "\x1c", "\xc2\xa0"])
PAIRS = st.tuples(
    BLANKS,
    st.sampled_from(["theme", "theme", "Theme", "other", "the me", "", "theme[]", '"theme"']),
    BLANKS,
    st.sampled_from(["=", "=", "==", ""]),
    BLANKS,
    st.sampled_from(["light", "evil", "", '"light"', '"a', 'b"', 'a"b', '"\\"', "a,b", "\xe9"]),
    BLANKS,
).map("".join)
COOKIES = st.lists(st.lists(PAIRS, min_size=1, max_size=3).map(";".join), max_size=2).map(
    lambda lines: tuple(("cookie", line) for line in lines)
)


def test_requests_whose_cookies_the_framework_reads_differently_never_share_a_response(
    serve: Serve,
):
    served = serve(echo(theme), cache("/page/{id}", vary_cookies=("theme",)))
    pages = itertools.count()
    hits: list[Answer] = []

    @settings(
        max_examples=100,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.nested_given],
    )
    @given(one=COOKIES, other=COOKIES)
    @example(one=(("cookie", "theme =evil"),), other=())
    @example(one=(("cookie", "theme=light"),), other=(("cookie", "theme=light"),))
    def holds(one: Fields, other: Fields) -> None:
        page = f"/page/{next(pages)}"
        for fields in (one, other, one):
            answer = served.request("GET", page, fields)
            assert answer.body == served.request("GET", "/not-cached", fields).body
            hits.extend([answer] * was_hit(answer))

    holds()
    assert hits, "or this test has shown nothing"


def test_a_cookie_whose_name_no_browser_can_send_is_refused():
    """RFC 6265 §4.1.1."""
    for name in ("the me", "a=b", "a;b", 'a"b', "th\xe9me"):
        with pytest.raises(ConfigurationError, match=r"vary_cookies: .* should be the name of a"):
            CacheRule("/page", vary_cookies=(name,))


def hello(seen: Seen) -> Reply:
    """A page that has read the session, and says so as Django and Flask do."""
    body = f"hello {seen.cookies('session')}, in {seen.cookies('theme')}".encode()
    return Reply(body, headers=(*PLAIN, ("vary", "Cookie")))


def test_a_rules_cookies_do_not_turn_a_page_of_a_session_into_a_shared_one(serve: Serve):
    """RFC 9111 §4.1: the response's own Vary holds beside them."""
    served = serve(hello, cache("/{rest:path}", vary_cookies=("theme",)))
    ada, bob = ((("cookie", f"theme=dark; session={user}"),) for user in ("ada", "bob"))
    assert served.request("GET", "/page", ada).body == b"hello ada, in dark"
    assert served.request("GET", "/page", bob).body == b"hello bob, in dark"
    assert was_hit(served.request("GET", "/page", ada))
    assert served.request("GET", "/page", (("cookie", "theme=dark"),)).body == (
        b"hello None, in dark"
    )


def test_a_rule_may_narrow_vary_cookie_to_the_cookies_that_it_names(serve: Serve):
    served = serve(hello, cache(vary_cookies=("session",), narrow_vary_cookie=True))
    bodies = [
        served.request("GET", "/page", (("cookie", cookie),)).body
        for cookie in ("session=ada; _ga=1", "_ga=2; session=ada", "session=bob; _ga=1", "_ga=1")
    ]
    assert bodies == [b"hello ada, in None"] * 2 + [b"hello bob, in None", b"hello None, in None"]
    assert was_hit(served.request("GET", "/page", (("cookie", "_ga=3; session=ada"),)))


# --- Vary --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["safe", "conforming"])
@pytest.mark.parametrize("vary", ["Origin", "X-Tenant"])
@pytest.mark.parametrize("other", ["acme,", ",acme", "acme,,", " ,acme", "acme, acme"])
def test_a_comma_in_a_field_that_is_no_list_is_part_of_its_value(
    serve: Serve, profile: str, vary: str, other: str
):
    """RFC 9111 §4.1: values are normalised as the field's own definition allows."""
    served = serve(echo(lambda seen: seen.header(vary), ("vary", vary)), cache(profile=profile))
    for value in (other, "acme", other):
        answer = served.request("GET", "/page", ((vary, value),))
        assert answer.body == repr(value).encode()


def test_a_comma_in_a_field_that_a_rule_names_is_part_of_its_value(serve: Serve):
    tenant = echo(lambda seen: seen.header("x-tenant"))
    served = serve(tenant, cache(vary_headers=("X-Tenant",)))
    for value in ("acme,", "acme", "acme,"):
        answer = served.request("GET", "/page", (("X-Tenant", value),))
        assert answer.body == repr(value).encode()


def test_a_selecting_field_on_two_lines_is_what_the_framework_makes_of_it(serve: Serve):
    """Starlette uses the first line, and WSGI and Django join them."""
    tenant = echo(lambda seen: seen.header("x-tenant"), ("vary", "X-Tenant"))
    served = serve(tenant, cache())
    two = (("X-Tenant", "acme"), ("X-Tenant", "evil"))
    for fields in (two, (("X-Tenant", "acme, evil"),), (("X-Tenant", "acme"),), two):
        body = served.request("GET", "/page", fields).body
        assert body == served.request("GET", "/not-cached", fields).body


@pytest.mark.parametrize("other", ["de,,en", "de ,en", "DE,en", "en,de", "de,en;q=1"])
def test_a_list_is_compared_as_applications_see_it(serve: Serve, other: str):
    """Django, for one, finds no language in a list with an empty member."""
    language = echo(lambda seen: seen.header("accept-language"), ("vary", "Accept-Language"))
    served = serve(language, cache())
    for value in (other, "de,en", other):
        answer = served.request("GET", "/page", (("Accept-Language", value),))
        assert answer.body == repr(value).encode()


@pytest.mark.parametrize("other", ["de,,en", "de ,en", "DE,en", "en,de"])
def test_in_profile_conforming_a_list_is_normalised_as_its_definition_allows(
    serve: Serve, other: str
):
    """RFC 9111 §4.1."""
    served = serve(echo(lambda _: "page", ("vary", "Accept-Language")), cache(profile="conforming"))
    served.request("GET", "/page", (("Accept-Language", "de,en"),))
    assert was_hit(served.request("GET", "/page", (("Accept-Language", other),)))


def compressing(*codings: str, renders: list[str]) -> Callable[[Seen], Reply]:
    """Return a handler that uses the first of these codings that the client names, or none.

    It looks for the name alone, as Starlette's GZipMiddleware does.
    """

    def handler(seen: Seen) -> Reply:
        accepted = seen.header("accept-encoding") or ""
        coding = next((each for each in codings if each in accepted), "")
        renders.append(coding)
        fields = (*PLAIN, ("vary", "Accept-Encoding"))
        if coding:
            fields = (*fields, ("content-encoding", coding))
        return Reply(b"page in " + coding.encode(), headers=fields)

    return handler


def codings_of(served: Served, *spellings: str) -> list[str]:
    """Return the coding that a client gets for each Accept-Encoding."""
    answers = [served.request("GET", "/page", (("accept-encoding", each),)) for each in spellings]
    assert all(answer.body == f"page in {coding(answer)}".encode() for answer in answers)
    return [coding(answer) for answer in answers]


def coding(answer: Answer) -> str:
    return answer.header("content-encoding") or ""


SPELLINGS = [
    "gzip, deflate, br, zstd",
    "gzip, deflate, br",
    "gzip,deflate",
    "gzip",
    "deflate, gzip;q=1.0",
    "br;q=1.0, gzip;q=0.8, identity;q=0.1",
]


def test_one_compressed_response_is_stored_for_all_spellings_of_accept_encoding(serve: Serve):
    renders: list[str] = []
    served = serve(compressing("gzip", renders=renders), cache())
    assert codings_of(served, *SPELLINGS) == ["gzip"] * len(SPELLINGS)
    assert codings_of(served, "identity", "deflate", "br, zstd") == ["", "", ""]
    assert served.request("GET", "/page").body == b"page in "
    assert renders == ["gzip", "", "", ""], "identity, none of ours, and no such field"
    assert codings_of(served, *SPELLINGS) == ["gzip"] * len(SPELLINGS)
    assert len(renders) == 4


@pytest.mark.parametrize("first", ["identity", "deflate", "br", "gzip;q=0", "GZIP", "*", ""])
def test_who_does_not_accept_a_coding_takes_it_from_nobody_else(serve: Serve, first: str):
    renders: list[str] = []
    served = serve(compressing("gzip", renders=renders), cache())
    codings_of(served, first)
    assert codings_of(served, *SPELLINGS) == ["gzip"] * len(SPELLINGS)


def test_a_coding_that_a_client_refuses_is_stored_for_its_own_spelling_alone(serve: Serve):
    """Applications that overlook a weight of zero answer with it all the same."""
    served = serve(compressing("gzip", renders=[]), cache())
    for refusing in ("gzip;q=0", "identity, gzip;q=0.0"):
        codings_of(served, refusing)
    assert codings_of(served, "identity", "deflate") == ["", ""]


def test_each_coding_of_the_stored_responses_has_its_clients(serve: Serve):
    renders: list[str] = []
    served = serve(compressing("br", "gzip", renders=renders), cache())
    spellings = ["gzip, deflate, br, zstd", "gzip, br", "gzip", "gzip, deflate", "identity", "br"]
    assert codings_of(served, *spellings) == ["br", "br", "gzip", "gzip", "", "br"]
    assert renders == ["br", "gzip", "", "br"]
    assert codings_of(served, *spellings) == ["br", "br", "gzip", "gzip", "", "br"]
    assert len(renders) == 4


def test_in_profile_conforming_accept_encoding_is_a_list_like_others(serve: Serve):
    """RFC 9111 §4.1."""
    renders: list[str] = []
    served = serve(compressing("gzip", renders=renders), cache(profile="conforming"))
    codings_of(served, "gzip, br", "BR,GZIP", "gzip")
    assert renders == ["gzip", "gzip"]


# --- Bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_request_with_a_body_goes_past_the_cache(serve: Serve, method: str):
    """RFC 9110 §9.3.1: a body of a GET means nothing, but applications read it."""
    served = serve(echo(lambda seen: seen.body), cache())
    answer = served.request(method, "/page", body=b"evil")
    assert 'fwd=bypass; detail="it has a body"' in status(answer)
    assert served.request("GET", "/page").body == b"b''"
    assert "; fwd=bypass" in status(served.request(method, "/page", body=b"evil"))
    assert was_hit(served.request("GET", "/page"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_an_application_makes_of_an_unannounced_body_is_not_stored(serve: Serve, method: str):
    """RFC 9113 §8.1: under HTTP/2 a body may come without Content-Length."""
    served = serve(echo(lambda seen: seen.body), cache())
    served.request(method, "/page", body=b"evil", announced=False)
    answer = served.request("GET", "/page")
    assert answer.body == b"b''"
    served.request(method, "/page", body=b"evil", announced=False)
    assert served.request("GET", "/page").body == b"b''"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_request_with_transfer_encoding_goes_past_the_cache(serve: Serve, method: str):
    served = serve(echo(lambda _: "page"), cache())
    chunked = (("transfer-encoding", "chunked"),)
    assert "; fwd=bypass" in status(served.request(method, "/page", chunked))
    served.request("GET", "/page")
    assert "; fwd=bypass" in status(served.request(method, "/page", chunked))


def test_a_request_whose_length_is_zero_has_no_body(serve: Serve):
    served = serve(echo(lambda _: "page"), cache())
    served.request("GET", "/page", (("content-length", "0"),))
    assert was_hit(served.request("GET", "/page", (("content-length", "00"),)))


def test_in_profile_conforming_a_body_of_a_get_means_nothing(serve: Serve):
    """RFC 9110 §9.3.1."""
    served = serve(echo(lambda _: "page"), cache(profile="conforming"))
    served.request("GET", "/page", body=b"evil")
    assert was_hit(served.request("GET", "/page"))


# --- Query and host ----------------------------------------------------------------------------


def test_a_query_is_read_as_utf8_or_goes_past_the_cache(serve: Serve):
    """Django decodes it by the charset that a Content-Type says of a body."""
    served = serve(echo(lambda _: "page"), cache(keep_query=("page",)))
    for charset in ("cp037", '"latin-1"', "utf-8; charset=cp037", ""):
        fields = (("content-type", f"text/plain; charset={charset}"),)
        answer = served.request("GET", "/page?%97%81%87%85=evil", fields)
        assert "; fwd=bypass" in status(answer)
    assert not was_hit(served.request("GET", "/page"))
    for kind in ("text/plain", "application/json; charset=UTF-8", 'text/plain; charset="utf8"'):
        assert was_hit(served.request("GET", "/page", (("content-type", kind),)))


def test_several_host_fields_are_one_host_or_go_past_the_cache(serve: Serve):
    """RFC 9112 §3.2 has servers refuse them; Starlette uses the first, and WSGI and Django join."""
    served = serve(echo(lambda seen: seen.header("host")), cache())
    two = (("host", "evil.example"),)
    for fields in (two, (), two):
        answer = served.request("GET", "/page", fields)
        assert answer.body == served.request("GET", "/not-cached", fields).body


def test_a_query_with_a_blank_goes_past_the_cache(serve: Serve):
    """RFC 3986 §3.4 has no blanks; frameworks and servers may read it in several ways."""
    served = serve(echo(lambda seen: seen.query), cache())
    assert "; fwd=bypass" in status(served.request("GET", "/page?q=a b"))
    assert not was_hit(served.request("GET", "/page?q=a%20b"))


def test_the_port_is_a_part_of_the_host(serve: Serve):
    """Frameworks make links of it, also where it is the scheme's own."""
    served = serve(echo(lambda seen: seen.header("host")), cache())
    hosts = ["x.example", "x.example:80", "x.example:443", "x.example.", "x.example"]
    for host in hosts:
        assert served.request("GET", "/page", host=host).body == repr(host).encode()


def test_in_profile_conforming_the_schemes_own_port_makes_no_difference(serve: Serve):
    """RFC 9110 §4.2.3."""
    served = serve(echo(lambda _: "page"), cache(profile="conforming"))
    served.request("GET", "/page", host="x.example")
    assert was_hit(served.request("GET", "/page", host="x.example:80"))


@pytest.mark.parametrize("field", [("cookie", "session=ada"), ("authorization", "Bearer ada")])
def test_a_page_for_anonymous_visitors_answers_others_unless_the_rule_says_otherwise(
    serve: Serve, field: tuple[str, str]
):
    """RFC 9111 §4 permits it."""
    served = serve(
        echo(lambda seen: seen.header(field[0])),
        (
            "CacheMiddleware",
            {
                "cache": [
                    CacheRule("/for-all", ttl=60),
                    CacheRule("/personal", ttl=60, bypass=lambda asked: field[0] in asked.headers),
                ]
            },
        ),
    )
    for path in ("/for-all", "/personal"):
        assert served.request("GET", path).body == b"None"
    assert was_hit(served.request("GET", "/for-all", (field,)))
    assert served.request("GET", "/personal", (field,)).body == repr(field[1]).encode()
    assert was_hit(served.request("GET", "/personal"))


# --- Users -------------------------------------------------------------------------------------


class Nobody:
    """As frameworks have it for a visitor who has not logged in."""

    is_authenticated = False

    def __str__(self) -> str:
        return "AnonymousUser"


@pytest.mark.parametrize("nobody", ["", None, False, Nobody()])
def test_visitors_without_a_user_share_no_private_cache(serve: Serve, nobody: object):
    served = serve(
        lambda seen: Reply((seen.header("x-visitor") or "").encode(), headers=PRIVATE),
        cache(user=lambda asked: asked.headers.get("x-user") or nobody),
    )
    for visitor in ("one", "two"):
        answer = served.request("GET", "/page", (("x-visitor", visitor),))
        assert answer.body == visitor.encode()
        assert 'detail="private"' in status(answer)
    ada = (("x-user", "ada"), ("x-visitor", "ada"))
    served.request("GET", "/page", ada)
    assert was_hit(served.request("GET", "/page", ada))


class Known:
    """A user of a framework's, by whose name nobody can be told apart."""

    is_authenticated = True

    def __init__(self, pk: object) -> None:
        if pk is not None:
            self.pk = pk

    def __str__(self) -> str:
        return "Ada"


class OfFlaskLogin(Known):
    """Its id is what a method returns."""

    def get_id(self) -> object:
        return self.pk


def pages_of_two_users(serve: Serve, first: object, second: object) -> list[bool]:
    """Return whether each of two users gets a stored page, when both have asked before."""
    users = {"1": first, "2": second}
    served = serve(
        lambda seen: Reply((seen.header("x-user") or "").encode(), headers=PRIVATE),
        cache(user=lambda asked: users[asked.headers.get("x-user") or ""]),
    )
    hits = []
    for _ in range(2):
        answers = {user: served.request("GET", "/page", (("x-user", user),)) for user in users}
        assert {user: answer.body.decode() for user, answer in answers.items()} == {
            "1": "1",
            "2": "2",
        }
        hits = [was_hit(answer) for answer in answers.values()]
    return hits


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ada", "bob"),
        (1, 2),
        (UUID(int=1), UUID(int=2)),
        (Known(1), Known(2)),
        (OfFlaskLogin("1"), OfFlaskLogin("2")),
    ],
    ids=["text", "numbers", "UUIDs", "users of Django", "users of Flask-Login"],
)
def test_each_user_has_the_pages_of_their_id(serve: Serve, first: object, second: object):
    assert pages_of_two_users(serve, first, second) == [True, True]


@pytest.mark.parametrize(
    ("first", "second"),
    [(Known(None), Known(None)), (object(), object()), (True, True), (b"a", b"b"), (1.5, 1.5)],
    ids=["users without a pk", "objects", "True", "bytes", "fractions"],
)
def test_what_is_no_id_of_a_user_takes_the_request_past_the_cache(
    serve: Serve, first: object, second: object
):
    assert pages_of_two_users(serve, first, second) == [False, False]


PRIVATE: Fields = (*PLAIN, ("cache-control", "private"))


def test_a_host_with_capital_letters_neither_finds_nor_leaves_a_page(serve: Serve):
    """RFC 9110 §4.2.3: hosts compare without case, but applications look them up as they came."""
    served = serve(lambda asked: Reply((asked.header("host") or "").encode()), cache())
    for host in ("SHOP.example", "shop.example", "Shop.example"):
        answer = served.request("GET", "/page", host=host)
        assert answer.body.decode() == host
    assert was_hit(served.request("GET", "/page", host="shop.example"))


@pytest.mark.parametrize("name", ["x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix"])
def test_two_lines_of_a_field_select_another_page_than_one_with_a_comma(serve: Serve, name: str):
    """Some frameworks read the first line, others the last, or all of them joined."""
    served = serve(lambda asked: Reply(repr(list_of(asked, name)).encode()), cache())
    for lines in (["a, b"], ["a", "b"], ["a, b"]):
        answer = served.request("GET", "/page", tuple((name, line) for line in lines))
        joined = {repr([comma.join(lines)]) for comma in (",", ", ")}  # as WSGI servers join them
        assert answer.body.decode() in {repr(lines), *joined}


def list_of(seen: Seen, name: str) -> list[str]:
    return [value for each, value in seen.headers if each.lower() == name]
