"""The console as its server sends it: who gets in, what pages show, what they can do."""

from __future__ import annotations

import datetime as dt
import itertools
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import httpx
import pytest
from msgspec import structs
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from upstash_redis.errors import UpstashError

from tests.local.scene import shop, values, visits
from upstash_middleware import RateLimited, RateLimitRule, SyncLimiter, TokenBucket
from upstash_middleware.core.ratelimit.algorithms import ALGORITHMS, parse_limits
from upstash_middleware.core.ratelimit.algorithms.limit import Limit, State
from upstash_middleware.core.ratelimit.charges import limit_script
from upstash_middleware.local import LocalUpstash
from upstash_middleware.local.console import auth, handlers
from upstash_middleware.local.http1 import Request
from upstash_middleware.starlette import SessionMiddleware, session
from upstash_middleware.wsgi import RateLimitMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.requests import Request as StarletteRequest
    from upstash_redis import Redis

PAGES = [
    handlers.OVERVIEW,
    handlers.KEYS,
    handlers.SESSIONS,
    handlers.DATA,
    f"{handlers.KEY}?key=k",
    handlers.COMMANDS,
    handlers.FAULTS,
]
ACTIONS = [
    handlers.DELETE,
    handlers.SET,
    handlers.EXPIRE,
    handlers.COMMANDS,
    handlers.FLUSH,
    handlers.RESET,
    handlers.FAULTS,
]
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&lt;"


@pytest.fixture
def browser(upstash: LocalUpstash) -> Iterator[httpx.Client]:
    """A browser that came by the printed address."""
    with httpx.Client(base_url=upstash.url, follow_redirects=True, timeout=30) as client:
        assert client.get(upstash.console_url).status_code == 200
        yield client


class Elements(HTMLParser):
    """The elements of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def links(self) -> list[str]:
        return [there["href"] or "" for tag, there in self.found if tag == "a"]


def text_of(answer: httpx.Response) -> str:
    """What a page says, without its markup."""
    bare = re.sub(r"<[^>]*>", " ", answer.text)
    return re.sub(r"\s+", " ", unescape(bare)).replace("\N{NARROW NO-BREAK SPACE}", "")


def submit(browser: httpx.Client, address: str, **fields: str) -> httpx.Response:
    """Send a form as the console's own pages do."""
    page = browser.get(handlers.FAULTS).text
    found = re.search(r'name="form" value="([0-9a-f]{32})"', page)
    assert found
    origin = {"Origin": str(browser.base_url).rstrip("/")}
    return browser.post(address, data={"form": found[1], **fields}, headers=origin)


def of_key(key: str | bytes, address: str = handlers.KEY) -> str:
    return f"{address}?key={quote(key, safe='')}"


def watched(answer: httpx.Response) -> Iterator[str]:
    """The live events of a stream, which has begun when this returns."""
    lines = answer.iter_lines()
    assert next(lines) == ": watching"
    return (line for line in lines if line.startswith("data: "))


# Who gets in.


@pytest.mark.parametrize("address", [*PAGES, handlers.EVENTS, *ACTIONS])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_has_no_key_sees_nothing_and_changes_nothing(
    upstash: LocalUpstash, redis: Redis, address: str, method: str
):
    redis.set("k", "the-value")
    given = "" if address == handlers.OVERVIEW or "?" in address else "?key=k"
    headers = {"Origin": upstash.url}
    answer = httpx.request(method, upstash.url + address + given, headers=headers)
    assert answer.status_code == 401
    assert "the-value" not in answer.text
    assert redis.get("k") == "the-value"
    assert "set-cookie" not in answer.headers


def test_the_printed_address_lets_in_and_does_not_stay_in_the_address_bar(upstash: LocalUpstash):
    answer = httpx.get(upstash.console_url)
    assert (answer.status_code, answer.headers["location"]) == (303, handlers.OVERVIEW)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"upstash-console-{upstash.port}=")
    for attribute in ("HttpOnly", "SameSite=Strict", f"Path={handlers.OVERVIEW}"):
        assert attribute in cookie
    assert upstash.token not in cookie + upstash.console_url


@pytest.mark.parametrize(("given", "status"), [("right", 200), ("wrong", 401), ("read-only", 401)])
def test_the_token_lets_in_too_and_no_other(upstash: LocalUpstash, given: str, status: int):
    token = {"right": upstash.token, "read-only": upstash.read_only_token}.get(given, given)
    with httpx.Client(base_url=upstash.url, follow_redirects=True) as client:
        headers = {"Origin": upstash.url}
        answer = client.post(handlers.LOGIN, data={"token": token}, headers=headers)
        assert answer.status_code == status
        assert ("This is not the server's token." in text_of(answer)) is (status == 401)
        assert bool(client.cookies) is (status == 200)


def test_the_cookie_of_another_server_opens_nothing(upstash: LocalUpstash, browser: httpx.Client):
    (value,) = browser.cookies.values()
    other = {"Cookie": f"a=b; upstash-console-{upstash.port}={value[::-1]}"}
    assert httpx.get(upstash.url + handlers.KEYS, headers=other).status_code == 401
    own = {"Cookie": f"a=b; upstash-console-{upstash.port}={value}"}
    assert httpx.get(upstash.url + handlers.KEYS, headers=own).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b", "1.2.3"]
)
def test_a_name_that_somebody_may_have_pointed_here_is_refused(browser: httpx.Client, host: str):
    answer = browser.get(handlers.KEYS, headers={"Host": host})
    assert answer.status_code == 403
    assert "by an IP address or as localhost" in text_of(answer)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "shop.localhost", "[::1]", "192.168.1.7"]
)
def test_names_that_only_mean_a_machine_are_answered(
    upstash: LocalUpstash, browser: httpx.Client, host: str
):
    (value,) = browser.cookies.values()
    headers = {
        "Host": f"{host}:{upstash.port}",
        "Cookie": f"upstash-console-{upstash.port}={value}",
    }
    assert httpx.get(upstash.url + handlers.KEYS, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
def test_another_page_reads_nothing_though_the_browser_is_in(
    browser: httpx.Client, headers: dict[str, str]
):
    assert browser.get(handlers.KEYS, headers=headers).status_code == 403


def test_a_link_to_the_console_may_be_followed_and_a_foreign_form_may_not(browser: httpx.Client):
    followed = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert browser.get(handlers.KEYS, headers=followed).status_code == 200
    assert browser.post(handlers.FLUSH, headers=followed).status_code == 403


@pytest.mark.parametrize("address", ACTIONS)
@pytest.mark.parametrize("secret", [{}, {"form": "0" * 32}])
def test_what_changes_something_needs_the_secret_of_the_console_s_forms(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client, address: str, secret: dict[str, str]
):
    redis.set("k", "v")
    fields = {"fault": "quota", "key": "k", "command": "DEL k", "selected": "k", **secret}
    headers = {"Origin": str(browser.base_url).rstrip("/")}
    assert browser.post(address, data=fields, headers=headers).status_code == 403
    assert browser.post(of_key("k", address), data=secret, headers=headers).status_code == 403
    assert redis.get("k") == "v"
    assert upstash.bill().by_command["SET"] == 1


@pytest.mark.parametrize(
    "address", [handlers.DELETE, handlers.SET, handlers.EXPIRE, handlers.FLUSH]
)
def test_nothing_is_changed_by_following_a_link(redis: Redis, browser: httpx.Client, address: str):
    redis.set("k", "v")
    assert browser.get(of_key("k", address)).status_code == 404
    assert redis.get("k") == "v"


# How pages are sent.


@pytest.mark.parametrize("address", [*PAGES, "/-/console/nowhere"])
def test_pages_allow_nothing_from_elsewhere_and_nothing_inline(
    redis: Redis, browser: httpx.Client, address: str
):
    redis.set("k", "v")
    answer = browser.get(address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for tag, given in Elements(answer.text).found:
        assert tag not in {"style", "iframe"}
        assert not any(name.startswith("on") or name == "style" for name in given)
        for name in ("src", "href", "action"):
            assert (given.get(name) or "/").startswith(("/-/console", "#", "data:,", "/")), given
            assert "//" not in (given.get(name) or "").partition("?")[0]


@pytest.mark.parametrize("address", PAGES)
def test_pages_have_their_language_title_and_labels(
    redis: Redis, browser: httpx.Client, address: str
):
    redis.set("k", "v")
    page = browser.get(address).text
    found = Elements(page).found
    assert ("html", {"lang": "en"}) in found
    assert page.count("<h1") == 1
    assert re.search(r"<title>[^<]+ · local Upstash</title>", page)
    labelled = {given["for"] for tag, given in found if tag == "label"}
    fields = {
        given.get("id")
        for tag, given in found
        if tag in {"input", "textarea"} and given.get("type") not in {"hidden", "checkbox"}
    }
    assert fields == labelled


def test_head_has_the_head_of_a_page_and_opens_no_stream(browser: httpx.Client):
    answer = browser.head(handlers.OVERVIEW)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000
    assert browser.head(handlers.EVENTS).status_code == 404


@pytest.mark.parametrize("name", ["console.css", "console.js"])
def test_style_and_script_come_from_the_server_itself(upstash: LocalUpstash, name: str):
    answer = httpx.get(f"{upstash.url}/-/console/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(("text/css", "text/javascript"))
    assert "http:" not in answer.text
    assert "https:" not in answer.text


def test_the_styles_say_once_how_something_looks_at_a_width(upstash: LocalUpstash):
    """A rule that is repeated below overrides what was meant for narrow windows."""
    styles = httpx.get(f"{upstash.url}/-/console/console.css").text
    for part in styles.partition("@media (max-width: 44rem)"):
        selectors = re.findall(r"^ *([^{}@/\n]+?) \{", part, re.MULTILINE)
        assert sorted(selectors) == sorted(set(selectors))


# Keys.


def test_keys_show_what_the_middleware_keeps_for_what_it_is(
    upstash: LocalUpstash, browser: httpx.Client
):
    for _ in visits(upstash):
        pass
    page = browser.get(handlers.KEYS).text
    rows = re.findall(r"<th scope=\"row\">.*?</tr>", page)
    kinds = {}
    for row in rows:
        key = unescape(re.sub(r"<[^>]*>", "", row.partition("</th>")[0]))
        badge = re.search(r'class="badge [a-z]+">([^<]+)<', row)
        assert badge
        key = re.sub(r"(?<=:session:).*|(?<=:session-user:).*|(?<=#)[0-9a-f]{32}$", "…", key)
        kinds[re.sub(r"(?<=[:.])\d{5,}$", "N", key)] = badge[1]
    entry = "shop:cache:entry:http://shop.example"
    assert kinds == {
        "shop:/api/fixed:peer=testclient:N": "fixed window",
        "shop:/api/sliding:peer=testclient:N": "sliding window",
        "shop:/api/bucket:peer=testclient:bucket.N": "token bucket",
        "shop:/api/gcra:peer=testclient:gcra.N": "GCRA",
        "shop:/api/log:peer=testclient:log.N": "sliding log",
        "shop:/api/slots:peer=testclient:slots": "concurrency",
        "shop:session:…": "session",
        "shop:session-user:…": "session epoch",
        "shop:/api/slots:peer=testclient:N": "fixed window",
        "shop:default:peer=testclient:N": "sliding window",
        f"{entry}/products/tea": "cached response",
        f"{entry}/products/coffee": "cached response",
        f"{entry}/products/cocoa": "cached response",
        f"{entry}/prices": "cache variants",
        f"{entry}/prices#…": "cached response",
    }


def keys_of(page: str) -> list[str]:
    return [
        unescape(key) for key in re.findall(r'<th scope="row"><a [^>]*><code>(.*?)</code>', page)
    ]


def test_a_part_of_a_name_is_taken_as_it_is_and_a_pattern_as_a_pattern(
    redis: Redis, browser: httpx.Client
):
    for key in ("user:1", "user:2", "users", "a\\b", "other"):
        redis.set(key, "v")

    def search(words: str) -> list[str]:
        return keys_of(browser.get(handlers.KEYS, params={"q": words}).text)

    assert search("user:") == ["user:1", "user:2"]
    assert search("a\\") == ["a\\b"]
    assert search("the") == ["other"]
    assert search("*r?") == ["users"]
    assert search("nothing") == []
    assert len(search("")) == 5


def test_every_key_is_on_one_of_the_pages(redis: Redis, browser: httpx.Client):
    names = {f"many:{number}" for number in range(500)}
    redis.mset(dict.fromkeys(names, "v"))
    seen: list[str] = []
    answer = browser.get(handlers.KEYS, params={"q": "many:"})
    for page in range(10):
        assert f"500 keys, page {page + 1} of 10" in text_of(answer)
        seen += keys_of(answer.text)
        onward = [link for link in Elements(answer.text).links() if f"page={page + 1}" in link]
        assert bool(onward) is (page < 9)
        answer = browser.get(onward[0]) if onward else answer
    assert len(seen) == len(names)
    assert set(seen) == names


def test_a_rare_key_is_found_among_many_others(redis: Redis, browser: httpx.Client):
    redis.mset({f"other:{number}": "v" for number in range(3000)})
    redis.set("rare", "v")
    assert keys_of(browser.get(handlers.KEYS, params={"q": "rare"}).text) == ["rare"]


def test_a_key_that_never_expires_says_so(redis: Redis, browser: httpx.Client):
    redis.set("for-ever", "v")
    redis.set("for-a-while", "v", ex=10_000)
    assert "for-ever string never" in text_of(browser.get(handlers.KEYS, params={"q": "for-e"}))
    assert re.search(r"for-a-while string 2.8 h", text_of(browser.get(f"{handlers.KEYS}?q=for-a")))


def test_an_empty_database_says_what_to_do(browser: httpx.Client):
    assert "The database is empty." in text_of(browser.get(handlers.KEYS))
    assert browser.get(f"{handlers.KEYS}?page=nonsense&sort=x").status_code == 200


# One key.


def visit_with_a_session(upstash: LocalUpstash, **settings: Any) -> None:
    """Log in, so that there is a session bound to a user."""

    async def log_in(request: StarletteRequest) -> PlainTextResponse:
        request.session["born"] = dt.date(1815, 12, 10)
        request.session["name"] = HOSTILE
        session(request).bind("ada")
        return PlainTextResponse("welcome")

    app = Starlette(routes=[Route("/", log_in)])
    app.add_middleware(SessionMiddleware, prefix="shop", redis=upstash, **settings)
    with TestClient(app) as client:
        client.get("/")


def test_a_session_is_opened_and_can_be_ended(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    """Its entries are decoded, whatever they contain."""
    visit_with_a_session(upstash)
    page = browser.get(handlers.KEYS)
    assert [name.rpartition(":")[0] for name in keys_of(page.text)] == [
        "shop:session-user",
        "shop:session",
    ]
    assert re.findall(r'class="badge session">([^<]+)<', page.text) == ["session epoch", "session"]
    epoch, key = keys_of(page.text)
    opened = browser.get(of_key(key))
    said = text_of(opened)
    assert "Kind session Type on Redis hash Expires in 14 d" in said
    assert "State valid Created" in said
    assert f"Bound to {epoch.rpartition(':')[2]}" in said
    assert "born date datetime.date(1815, 12, 10)" in said
    assert "<script>alert" not in opened.text
    redis.delete(epoch)
    assert "State ended with all sessions of its user" in text_of(browser.get(of_key(key)))
    submit(browser, handlers.DELETE, selected=key)
    assert redis.exists(key) == 0


def test_a_session_with_many_entries_is_shown_in_part(redis: Redis, browser: httpx.Client):
    """Its head is found among them."""
    key = f"shop:session:{'a' * 43}"
    entries = {f"={number}": f'"{"x" * 100}"' for number in range(1000)}
    redis.hset(key, values={**entries, ".": '\n[1795646797.5,1795646797.5,"salt",""]'})
    said = text_of(browser.get(of_key(key)))
    assert "Created" in said
    assert "Bound to no user" in said
    assert re.search(r"and 9\d\d more", said)


def test_a_session_that_cannot_be_read_says_why(upstash: LocalUpstash, browser: httpx.Client):
    visit_with_a_session(upstash, cache_keys=["k" * 32], cache_encrypt=True)
    _, key = keys_of(browser.get(handlers.KEYS).text)
    assert "signed or encrypted with cache_keys , or damaged" in text_of(browser.get(of_key(key)))


def test_a_cached_response_is_opened(upstash: LocalUpstash, browser: httpx.Client):
    for _ in visits(upstash):
        pass
    key = "shop:cache:entry:http://shop.example/products/tea"
    said = text_of(browser.get(of_key(key)))
    assert "Status 200 State fresh for" in said
    assert "Purges not purged" in said
    assert "Lifetime 5 min Stale while revalidating 2 min" in said
    assert "Tags product:tea product" in said
    assert "content-type text/html; charset=utf-8" in said
    assert "<h1>tea</h1>" in said
    stub = text_of(browser.get(of_key("shop:cache:entry:http://shop.example/prices")))
    assert "Selected by accept-language" in stub


@pytest.mark.parametrize(
    ("epoch", "value", "verdict"),
    [
        ("all", "x:", "purged"),
        ("url:/products/tea", "x:", "purged"),
        ("url:/products/tea", ":x", "softly purged"),
        ("url:/products/coffee", "x:", "not purged"),
        ("tag:product:tea", "x:", "not purged"),
    ],
)
def test_a_cached_response_tells_what_purges_have_made_of_it(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client, epoch: str, value: str, verdict: str
):
    for _ in visits(upstash):
        pass
    redis.set(f"shop:cache:epoch:{epoch}", value)
    key = "shop:cache:entry:http://shop.example/products/tea"
    assert f"Purges {verdict}" in text_of(browser.get(of_key(key)))
    if epoch.startswith("tag"):  # a tag's epoch counts once that of any tag has moved
        redis.set("shop:cache:epoch:tags", "x")
        assert "Purges purged" in text_of(browser.get(of_key(key)))
    said = text_of(browser.get(of_key(f"shop:cache:epoch:{epoch}")))
    assert "Epoch of the cache" in said


def test_a_lock_says_who_waits(redis: Redis, browser: httpx.Client):
    redis.set("p:cache:entry:http://h/x#lock", "token")
    redis.set("p:cache:entry:http://h/y#lock", "-")
    assert "One process renders this response" in text_of(
        browser.get(of_key("p:cache:entry:http://h/x#lock"))
    )
    assert "may not be stored" in text_of(browser.get(of_key("p:cache:entry:http://h/y#lock")))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("shop:/api/fixed:*", "Rule /api/fixed Identifier testclient Identified by peer"),
        ("shop:/api/fixed:*", "Used 1 Window 60 s"),
        ("shop:/api/sliding:*", "Used 1 Window 60 min"),
        ("shop:/api/bucket:*", "Tokens used 1"),
        ("shop:/api/gcra:*", "Drains 30 Every 60 s"),
        ("shop:/api/log:*", "Used 1 Window 60 s Entries 1"),
        ("shop:/api/slots:*:slots", "In flight 0"),
    ],
)
def test_a_limit_tells_its_state(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client, pattern: str, told: str
):
    for _ in visits(upstash):
        pass
    key = max(redis.keys(pattern))
    assert told in text_of(browser.get(of_key(key)))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_state_of_every_registered_algorithm_is_shown(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client, name: str
):
    algorithm = ALGORITHMS[name]
    rule = RateLimitRule("/", algorithm(*[5] * len(algorithm.quotas), 60))
    app = RateLimitMiddleware(hello, redis=upstash, rate_limits=[rule], default_limit=None)
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://shop.example") as client:
        assert client.get("/").status_code == 200
    (key,) = redis.keys("*")
    said = text_of(browser.get(of_key(key)))
    assert f"Kind {algorithm.title}" in said
    assert "Rule / Identifier 127.0.0.1" in said
    used = 0 if name == "concurrency" else 1
    assert f"Rate limit {used} of 5 used, {5 - used} remaining" in said
    assert "Next request is allowed" in said


def hello(_environ: Any, start_response: Any) -> list[bytes]:
    """An application."""
    start_response("200 OK", [])
    return [b"hello"]


def test_an_algorithm_is_shown_as_soon_as_it_is_registered(
    redis: Redis, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    class Countdown(Limit, frozen=True):
        name: ClassVar[str] = "countdown"
        title: ClassVar[str] = "a countdown"

        @classmethod
        def describe(cls, entries: Sequence[tuple[int, ...]], window: int, now: int) -> State:
            ((used,),) = entries
            return State("Passed", used, [("Lasts", "ms", window), ("Began", "at", now - 5000)])

    monkeypatch.setitem(ALGORITHMS, "countdown", Countdown)
    redis.set("app:rule:ip=192.0.2.1:countdown.2000", "12", ex=60)
    assert "a countdown" in text_of(browser.get(handlers.KEYS))
    said = text_of(browser.get(of_key("app:rule:ip=192.0.2.1:countdown.2000")))
    assert re.search(r"Passed 12 Lasts 2 s Began \d+(\.\d+)? s ago", said)


def test_other_types_are_shown_by_their_members(redis: Redis, browser: httpx.Client):
    redis.rpush("list", "first", "second")
    redis.sadd("set", "member")
    redis.hset("hash", "field", "value")
    redis.zadd("zset", {"member": 2.5})
    redis.xadd("stream", "1-1", {"field": "value"})
    redis.set("json", '{"b":[1,2],"a":null}')
    redis.rpush("long", *(f"number-{number}" for number in range(250)))
    for key, told in {
        "list": "0 first 1 second",
        "set": "Member member",
        "hash": "field value",
        "zset": "2.5 member",
        "stream": "1-1 field=value",
        "json": '{ "b": [ 1, 2 ], "a": null }',
        "long": "number-99 and 150 more",
    }.items():
        assert told in text_of(browser.get(of_key(key))), key


def test_bytes_that_are_no_text_are_shown_with_escapes(http: httpx.Client, browser: httpx.Client):
    http.post("/set/bytes", content=bytes(range(256)))
    said = text_of(browser.get(of_key("bytes")))
    assert "\\x00\\x01" in said
    assert "\\xfe\\xff" in said


def test_a_large_value_is_shown_in_part(http: httpx.Client, browser: httpx.Client):
    http.post("/set/large", content=b"x" * 9_000_000)
    answer = browser.get(of_key("large"))
    assert "The beginning of the value" in text_of(answer)
    assert len(answer.content) < 100_000


def test_a_frame_that_does_not_open_is_only_a_string(redis: Redis, browser: httpx.Client):
    redis.set("p:cache:entry:http://h/x", "1|||\nAAAA")
    said = text_of(browser.get(of_key("p:cache:entry:http://h/x")))
    assert "Cached response" not in said
    assert "AAAA" in said


def test_a_key_of_any_bytes_can_be_seen_and_deleted(http: httpx.Client, browser: httpx.Client):
    key = b"\xff\x00 /?#&%\n"
    http.get(f"/set/{quote(key, safe='')}/value")
    (link,) = [
        each for each in Elements(browser.get(handlers.KEYS).text).links() if "key?key" in each
    ]
    assert "value" in text_of(browser.get(link))
    chosen = quote(key, safe="")
    assert "1 key is deleted." in text_of(submit(browser, handlers.DELETE, selected=chosen))
    assert http.get("/dbsize").json() == {"result": 0}
    assert browser.get(link).status_code == 404
    assert "0 keys are deleted." in text_of(submit(browser, handlers.DELETE, selected=chosen))


def test_the_database_can_be_emptied(redis: Redis, browser: httpx.Client):
    redis.mset({"a": "1", "b": "2"})
    assert "The database is empty." in text_of(submit(browser, handlers.FLUSH))
    assert redis.dbsize() == 0


def test_whatever_a_key_or_value_holds_is_text(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    redis.set(HOSTILE, HOSTILE)
    redis.hset("hash", HOSTILE, HOSTILE)
    redis.set(f"{HOSTILE}:cache:entry:{HOSTILE}#lock", HOSTILE[:60])
    redis.set(f"p:{HOSTILE}:{HOSTILE}:bucket.1000", "1:1:1")
    keys = redis.keys("*")
    pages = [browser.get(handlers.KEYS, params={"q": q}) for q in ("", HOSTILE, HOSTILE[:5])]
    pages += [browser.get(of_key(key)) for key in keys]
    pages.append(browser.get(of_key(HOSTILE + "no such key")))
    pages.append(submit(browser, handlers.FAULTS, latency_ms=HOSTILE))
    for page in pages:
        assert page.status_code in {200, 400, 404}
        for tag, given in Elements(page.text).found:
            assert tag != "img"
            assert tag != "script" or given == {"src": handlers.SCRIPT, "defer": None}
            assert "onerror" not in given


# Quotas.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fixed 2/h", "fixed 2/h"),
        ("2 per 90 minutes", "sliding 2/90min"),
        ("log 2/7 days", "log 2/7day"),
        ("gcra 60/min burst 2", "gcra 60/min burst 2"),
        (TokenBucket(2, 1, 60), "TokenBucket(capacity=2, refill=1, per=60.0)"),
    ],
)
def test_a_limit_shows_its_quota_and_its_text(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client, text: Any, shown: str
):
    limiter = SyncLimiter(text, name="calls", redis=upstash, deadline=20)
    limiter.hit("alice")
    (key,) = redis.keys("*calls*")
    said = text_of(browser.get(of_key(key)))
    assert "1 of 2 used, 1 remaining" in said
    assert f"Limit {shown} " in said
    assert not isinstance(text, str) or parse_limits(shown) == parse_limits(text)
    limiter.hit("alice")
    said = text_of(browser.get(of_key(key)))
    assert "2 of 2 used, 0 remaining" in said
    assert re.search(r"Next request is allowed in [0-9.]+ (ms|s|min|h|d) ", said)
    assert re.search(r"Quota is whole again in [0-9.]+ (ms|s|min|h|d) ", said)


def test_to_look_at_a_quota_uses_nothing_and_costs_nothing(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    SyncLimiter("fixed 5/h", name="looked-at", redis=upstash, deadline=20).hit("alice")
    (key,) = redis.keys("*looked-at*")
    before, value = upstash.bill(), redis.get(key)
    for _ in range(3):
        assert "1 of 5 used, 4 remaining" in text_of(browser.get(of_key(key)))
    assert upstash.bill().commands == before.commands + 1  # the GET of this test
    assert redis.get(key) == value


def test_a_quota_that_no_request_has_named_is_not_invented(redis: Redis, browser: httpx.Client):
    redis.set("app:/api:ip=192.0.2.1:bucket.60000", "1795646787000:1:5", ex=60)
    said = text_of(browser.get(of_key("app:/api:ip=192.0.2.1:bucket.60000")))
    assert "shown after the next request that this limit counts" in said


def test_a_limit_shows_what_leases_have_reserved(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    limiter = SyncLimiter("fixed 1000/h", name="calls", lease="1m", redis=upstash, deadline=20)
    for _ in range(12):
        limiter.hit("alice")
    (key,) = redis.keys("*calls*")
    found = re.search(r"Reserved for leases (\d+) units, of which 0 were", page_of(browser, key))
    assert found
    assert int(found[1]) > 0


def page_of(browser: httpx.Client, key: str) -> str:
    return text_of(browser.get(of_key(key)))


# The overview.


def test_the_overview_counts_decisions_lookups_and_errors(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    for _ in visits(upstash, 2):
        pass
    limiter = SyncLimiter("fixed 2/h", name="overview", redis=upstash, deadline=20)
    for _ in range(2):
        limiter.hit("alice")
    with pytest.raises(RateLimited):
        limiter.hit("alice")
    with pytest.raises(UpstashError, match="integer"):
        redis.set("text", "x") and redis.incr("text")
    said = text_of(browser.get(handlers.OVERVIEW))
    assert "overview fixed 2/h 2 1 33 %" in said
    assert "/api/fixed fixed 100/min 3 0" in said
    assert "/api/slots 5 at once; fixed 500/day 3 0" in said
    assert re.search(r"Top identifiers .* testclient peer \d+ 0 alice id 2 1", said)
    # Of eight visits to three pages and two variants all but the first to each are hits.
    assert "Fresh 7 Stale 0 Missing 5" in said
    assert "58 %" in said
    assert re.search(r"Latency [0-9.]+ ms in this server", said)
    assert "ERR 1" in said
    submit(browser, handlers.RESET)
    said = text_of(browser.get(handlers.OVERVIEW))
    assert "No rate limit was checked yet." in said
    assert "Fresh 0 Stale 0 Missing 0" in said


def test_a_purged_response_counts_as_missing_and_an_old_one_as_stale(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    with TestClient(shop(), base_url="http://shop.example") as client:
        client.get("/products/tea")
        upstash.advance(301)
        client.get("/products/tea")
        assert "Fresh 0 Stale 1 Missing 1" in text_of(browser.get(handlers.OVERVIEW))
    upstash.reset()
    with TestClient(shop(), base_url="http://shop.example") as client:
        client.get("/products/tea")
        redis.set("shop:cache:epoch:all", "x:")
        client.get("/products/tea")
        assert "Fresh 0 Stale 0 Missing 2" in text_of(browser.get(handlers.OVERVIEW))


def test_calls_that_only_look_like_those_of_the_middleware_are_not_counted(
    upstash: LocalUpstash, http: httpx.Client, browser: httpx.Client
):
    script = limit_script()
    http.post("/", json=["SCRIPT", "LOAD", script.text])
    huge = ["1", "k", "1", "take", "0", "fixed", "1", "1", "9" * 400, "0", "1", "0"]
    for arguments in (["0"], ["x"], ["1", "k"], ["1", "k", "1", "take", "0", "fixed"], [], huge):
        http.post("/", json=["EVALSHA", script.sha, *arguments])
    http.post("/", json=["MGET", "p:cache:entry:http://h/x", "p:cache:entry:http://h/x#lock"])
    http.post("/", json=["SET", "p:cache:entry:http://h/y", "not an entry"])
    http.post("/", json=["MGET", "p:cache:entry:http://h/y"])
    said = text_of(browser.get(handlers.OVERVIEW))
    assert "No rate limit was checked yet." in said
    assert "Fresh 0 Stale 0 Missing 1" in said


# Namespaces, editing and commands.


def test_namespaces_are_a_tree_that_opens_along_the_path(redis: Redis, browser: httpx.Client):
    redis.mset(dict.fromkeys(["a:b:c", "a:b:d", "a:e", "f:g", "h"], "v"))

    def tree(address: str) -> list[tuple[str, str]]:
        page = browser.get(address).text
        found = re.search(r"<nav class=\"tree.*?</nav>", page, re.DOTALL)
        assert found
        return re.findall(r"<code>(.*?)</code> <small>(\d+)<", found[0])

    assert tree(handlers.KEYS) == [("a", "3"), ("f", "1")]
    assert tree(f"{handlers.KEYS}?under=a:") == [("a", "3"), ("b", "2"), ("f", "1")]
    assert keys_of(browser.get(f"{handlers.KEYS}?under=a:b:").text) == ["a:b:c", "a:b:d"]


def test_a_tree_has_no_more_levels_than_a_page_can_show(redis: Redis, browser: httpx.Client):
    deep = "a:" * 3000
    redis.set(f"{deep}z", "v")
    page = browser.get(f"{handlers.KEYS}?under={deep}")
    assert page.status_code == 200
    assert len(keys_of(page.text)) == 1


def test_keys_are_sorted_by_name_expiry_and_memory(redis: Redis, browser: httpx.Client):
    redis.set("b", "x" * 5000, ex=60)
    redis.set("a", "x", ex=600)
    redis.set("c", "x" * 100)

    def order(sort: str) -> str:
        return "".join(keys_of(browser.get(f"{handlers.KEYS}?sort={sort}").text))

    assert [order(sort) for sort in ("name", "-name", "expires", "memory")] == [
        *("abc", "cba", "bac", "acb")
    ]
    assert 'aria-sort="descending"' in browser.get(f"{handlers.KEYS}?sort=-memory").text


def test_many_keys_are_deleted_at_once(redis: Redis, browser: httpx.Client):
    redis.mset({f"old:{number}": "v" for number in range(1200)} | {"new:1": "v", "old": "v"})
    chosen = f"{handlers.DELETE}?list={handlers.KEYS}&under=old:"
    answer = submit(browser, chosen, all="1")
    assert "1200 keys are deleted." in text_of(answer)
    assert sorted(redis.keys("*")) == ["new:1", "old"]


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        ("string", {"Value": "new\r\nline"}, lambda redis: redis.get("k") == "new\nline"),
        ("hash", {"Field": "f", "Value": "v"}, lambda redis: redis.hget("k", "f") == "v"),
        ("list", {"Place": "0", "Member": "v"}, lambda redis: redis.lindex("k", 0) == "v"),
        ("set", {"Member": "v"}, lambda redis: redis.sismember("k", "v") == 1),
        ("zset", {"Score": "3", "Member": "v"}, lambda redis: redis.zscore("k", "v") == 3),
    ],
)
def test_values_are_changed_and_keep_their_expiry(
    redis: Redis, browser: httpx.Client, kind: str, given: dict[str, str], read: Any
):
    {
        "string": lambda: redis.set("k", "old"),
        "hash": lambda: redis.hset("k", "g", "w"),
        "list": lambda: redis.rpush("k", "old"),
        "set": lambda: redis.sadd("k", "old"),
        "zset": lambda: redis.zadd("k", {"old": 1}),
    }[kind]()
    redis.expire("k", 1000)
    assert "The value is set." in text_of(submit(browser, of_key("k", handlers.SET), **given))
    assert read(redis)
    assert 900 < redis.ttl("k") <= 1000


def test_a_change_that_redis_refuses_says_why(redis: Redis, browser: httpx.Client):
    redis.rpush("k", "old")
    answer = submit(browser, of_key("k", handlers.SET), Place="7", Member="v")
    assert answer.status_code == 400
    assert "index out of range" in text_of(answer)
    assert submit(browser, of_key("none", handlers.SET), Value="v").status_code == 404


def test_what_a_form_cannot_send_back_unchanged_is_not_offered(
    http: httpx.Client, browser: httpx.Client
):
    for value in (b"\xff", b"a\r\n", b"\x00", b"x" * 20_000):
        http.post("/set/k", content=value)
        assert "<textarea" not in browser.get(of_key("k")).text
    http.post("/set/k", content="\n caf\xe9\t\n".encode())
    assert ">\n\n caf\xe9\t\n</textarea>" in browser.get(of_key("k")).text


def test_an_expiry_is_set_and_removed(redis: Redis, browser: httpx.Client):
    redis.set("k", "v")
    address = of_key("k", handlers.EXPIRE)
    assert "The expiry is changed." in text_of(submit(browser, address, seconds="60.5"))
    assert 59 <= redis.ttl("k") <= 61
    submit(browser, address, seconds="")
    assert redis.ttl("k") == -1
    for wrong in ("soon", "-1", "0", "nan", "1e300"):
        answer = submit(browser, address, seconds=wrong)
        assert answer.status_code == 400
        assert f"'{wrong}' is not a number of seconds above 0" in text_of(answer)
    assert redis.ttl("k") == -1


@pytest.mark.parametrize(
    ("command", "reply", "billed"),
    [
        ("SET k 'two words'", "OK", 1),
        ('set k "say \\"hi\\""', "OK", 1),
        ("GET missing", "(nil)", 1),
        ("RPUSH list a b", "(integer) 2", 1),
        ("LRANGE empty 0 -1", "(empty array)", 1),
        ("INCR", "(error) ERR wrong number of arguments for 'incr' command", 1),
        ("PING", "PONG", 0),
        ("BLPOP k 0", "(error) ERR", 0),
        (
            "EVAL 'return {redis.call(\"GET\", KEYS[1]), {1, 2}, 3}' 1 k",
            "1) (nil) 2) 1) (integer) 1 2) (integer) 2 3) (integer) 3",
            2,
        ),
    ],
)
def test_a_command_is_run_and_says_what_it_is_billed(
    upstash: LocalUpstash, browser: httpx.Client, command: str, reply: str, billed: int
):
    before = upstash.bill()
    said = text_of(submit(browser, handlers.COMMANDS, command=command))
    assert f"Reply {command} {reply}" in said
    assert f"Billed: {billed} command" in said
    after = upstash.bill()
    assert after.requests == before.requests + 1
    assert after.commands == before.commands + billed


def test_a_command_with_an_open_quote_is_not_run(upstash: LocalUpstash, browser: httpx.Client):
    answer = submit(browser, handlers.COMMANDS, command="SET k 'v")
    assert answer.status_code == 400
    assert "The command cannot be read: no closing quotation." in text_of(answer)
    assert upstash.bill().requests == 0


def test_the_last_commands_are_a_history(redis: Redis, browser: httpx.Client):
    redis.set("k", HOSTILE)
    redis.get("k")
    page = browser.get(handlers.COMMANDS)
    names = re.findall(r"<b>(\w+)</b>", page.text)
    assert names[:2] == ["GET", "SET"]
    assert "<script>alert" not in page.text
    for number in range(250):
        redis.set("k", number)
    assert browser.get(handlers.COMMANDS).text.count("<li>") == 200


def test_sessions_and_values_have_lists_of_their_own(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    for _ in visits(upstash):
        pass
    values(upstash)
    said = text_of(browser.get(handlers.SESSIONS))
    assert re.search(r"1 session .* user \S+, 3 entries", said)
    page = browser.get(handlers.DATA)
    assert keys_of(page.text) == ["shop:data:basket:7", "shop:data:orders", "shop:data:rates"]
    assert "dict {'EUR': Decimal('1.08'), 'on': datetime.date(2026, 1, 31)}" in text_of(page)
    said = text_of(browser.get(of_key("shop:data:basket:7")))
    assert "Value of the application Type list Tags basket:7, basket" in said
    assert "['tea', 'cocoa']" in said
    assert "Type int" in text_of(browser.get(of_key("shop:data:orders")))
    chosen = f"{handlers.DELETE}?list={handlers.SESSIONS}"
    assert "1 key is deleted." in text_of(submit(browser, chosen, all="1"))
    assert redis.keys("shop:session:*") == []
    assert len(redis.keys("shop:data:*")) == 3


# From another machine.


def test_from_another_machine_the_console_only_shows(
    upstash: LocalUpstash, redis: Redis, browser: httpx.Client
):
    """Host names an address of the network, as in a browser elsewhere."""
    redis.set("k", "v")
    (value,) = browser.cookies.values()
    host = f"192.168.1.7:{upstash.port}"
    headers = {
        "Host": host,
        "Origin": f"http://{host}",
        "Cookie": f"upstash-console-{upstash.port}={value}",
    }
    found = re.search(r'name="form" value="([0-9a-f]{32})"', browser.get(handlers.FAULTS).text)
    assert found
    fields = {"form": found[1], "command": "DEL k", "selected": "k", "fault": "quota"}
    for address in ACTIONS:
        answer = httpx.post(f"{upstash.url}{address}?key=k", data=fields, headers=headers)
        assert answer.status_code == 403
        assert "Changes need the server's own machine" in text_of(answer)
    assert redis.get("k") == "v"
    for address in PAGES:
        page = httpx.get(upstash.url + address, headers=headers)
        assert page.status_code == 200
        assert all(given.get("method") != "post" for tag, given in Elements(page.text).found)


def test_a_connection_from_another_address_changes_nothing():
    """Whatever Host says: the address of the connection counts, too."""
    request = Request("POST", b"/-/console/flush", headers={b"host": b"localhost:8079"})
    assert not auth.is_on_this_machine(request)
    for client, expected in {
        "127.0.0.1": True,
        "127.0.0.2": True,
        "::1": True,
        "::ffff:127.0.0.1": True,
        "192.168.1.7": False,
        "::ffff:10.0.0.1": False,
    }.items():
        assert auth.is_on_this_machine(structs.replace(request, client=client)) is expected


def test_a_request_without_an_origin_changes_nothing(redis: Redis, browser: httpx.Client):
    redis.set("k", "v")
    found = re.search(r'name="form" value="([0-9a-f]{32})"', browser.get(handlers.FAULTS).text)
    assert found
    assert browser.post(handlers.FLUSH, data={"form": found[1]}).status_code == 403
    assert redis.get("k") == "v"


@pytest.mark.parametrize("name", ["console.css", "console.js"])
def test_host_and_origin_are_checked_for_style_and_script_too(upstash: LocalUpstash, name: str):
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = httpx.get(f"{upstash.url}/-/console/{name}", headers=headers)
        assert answer.status_code == 403


# The bill.


def test_looking_around_costs_nothing(upstash: LocalUpstash, redis: Redis, browser: httpx.Client):
    redis.set("k", "v")
    before = upstash.bill()
    for address in PAGES:
        assert browser.get(address).status_code == 200
    assert upstash.bill() == before


def test_the_bill_says_what_a_million_such_requests_cost(redis: Redis, browser: httpx.Client):
    redis.set("k", "v")
    redis.eval("redis.call('GET', KEYS[1]) return redis.call('GET', KEYS[1])", ["k"], [])
    answer = browser.get(handlers.OVERVIEW)
    said = text_of(answer)
    assert "Bill $4.00 for a million such requests" in said
    assert "Commands per request 2.00" in said
    assert re.search(r"GET 2 50 % .* EVAL 1 25 % .* SET 1 25 %", said)
    assert "Commands over the last 2 min: 4 in all" in said
    assert answer.text.count("<rect ") >= 3
    assert "Commands over the last 6 h: 4" in text_of(
        browser.get(f"{handlers.OVERVIEW}?span=21600")
    )
    assert "Commands over the last 2 min: 4" in text_of(browser.get(f"{handlers.OVERVIEW}?span=7"))


def test_a_new_bill_begins_a_new_chart(upstash: LocalUpstash, redis: Redis, browser: httpx.Client):
    redis.set("k", "v")
    assert "1 in all" in text_of(browser.get(handlers.OVERVIEW))
    said = text_of(submit(browser, handlers.RESET))
    assert "The counts, the bill and the history are reset." in said
    assert "0 in all" in said
    assert upstash.bill().requests == 0


# Faults.


def test_a_switch_turns_a_fault_on_and_off_again(
    upstash: LocalUpstash, http: httpx.Client, browser: httpx.Client
):
    answer = submit(browser, handlers.FAULTS, fault="quota", latency_ms="5", probability="")
    assert "Now: quota, 5 ms late" in text_of(answer)
    assert answer.text.count('aria-checked="true"') == 1
    assert http.post("/", json=["PING"]).status_code == 400
    answer = submit(browser, handlers.FAULTS, fault="", latency_ms="5")
    assert "Now: 5 ms late" in text_of(answer)
    assert "Now: none" in text_of(submit(browser, handlers.FAULTS))
    assert http.post("/", json=["PING"]).status_code == 200


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"latency_ms": "soon"}, "latency_ms should be a number, not 'soon'"),
        ({"latency_ms": "nan"}, "latency_ms should be a number"),
        ({"latency_ms": "-1"}, "latency_ms should be a number of at least 0"),
        ({"probability": "2"}, "probability should be between 0 and 1"),
        ({"fault": "rain"}, "no fault 'rain'"),
    ],
)
def test_faults_that_cannot_be_are_refused_by_name_in_the_console(
    browser: httpx.Client, fields: dict[str, str], named: str
):
    answer = submit(browser, handlers.FAULTS, **fields)
    assert answer.status_code == 400
    assert named in text_of(answer)
    assert "Now: none" in text_of(answer)


def test_refused_connections_come_back_and_so_does_the_page(
    upstash: LocalUpstash, browser: httpx.Client
):
    answer = submit(browser, handlers.FAULTS, fault="refuse", probability="0.5", times="3")
    assert "Connections are refused for 5 s." in text_of(answer)
    assert answer.headers["refresh"] == f"6; url={handlers.FAULTS}"
    upstash.set_faults()


def test_faults_that_are_over_are_shown_as_over(upstash: LocalUpstash, browser: httpx.Client):
    upstash.set_faults(fault="quota", seconds=0)
    assert "Now: none" in text_of(browser.get(handlers.FAULTS))


def test_the_console_works_under_any_fault(upstash: LocalUpstash, browser: httpx.Client):
    with upstash.faults(fault="drop-before", latency_ms=60_000):
        answer = browser.get(handlers.KEYS, timeout=30)
        assert "Simulated faults: drop-before, 60000 ms late" in text_of(answer)


# Live.


def test_commands_are_seen_as_they_come(upstash: LocalUpstash, redis: Redis, browser: httpx.Client):
    with browser.stream("GET", handlers.EVENTS, timeout=30) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = watched(answer)
        redis.set("<k>", HOSTILE)
        assert '<b>SET</b><code class="words">&lt;k&gt; ' in (line := next(lines))
        assert "<script" not in line
        redis.eval("return {redis.call('GET', KEYS[1])}", ["<k>"], [])
        assert 'class="calls">calls GET<' in next(lines)
        with pytest.raises(Exception, match="integer"):
            redis.incr("<k>")
        assert 'class="failed"' in next(lines)
        with upstash.faults(fault="drop-before", times=1), pytest.raises(httpx.HTTPError):
            redis.get("<k>")
        assert "drop-before" in next(lines)


def test_the_live_view_shows_what_limits_reserve_for_leases(
    upstash: LocalUpstash, browser: httpx.Client
):
    limiter = SyncLimiter("fixed 1000/h", name="calls", lease="1m", redis=upstash, deadline=20)
    with browser.stream("GET", handlers.EVENTS, timeout=30) as answer:
        lines = watched(answer)
        for _ in range(12):
            limiter.hit("alice")
        seen = "".join(itertools.takewhile(lambda line: "reserves" not in line, lines))
    assert seen.count("EVALSHA") >= 9


def test_a_refused_command_is_seen_too(
    upstash: LocalUpstash, http: httpx.Client, browser: httpx.Client
):
    with browser.stream("GET", handlers.EVENTS, timeout=30) as answer:
        lines = watched(answer)
        http.post("/pipeline", json=[["BLPOP", "k", 0], ["GET", "k"]])
        seen = next(lines)
        assert "BLPOP" in seen
        assert "not allowed in REST" in seen
        assert "GET" in seen + (next(lines) if seen.count("<li") < 2 else "")
    assert upstash.bill().by_command == {"GET": 1}


# The command line.


def test_its_address_is_printed_where_no_script_takes_it_for_a_variable():
    command = [sys.executable, "-m", "upstash_middleware.local", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        variables = [process.stdout.readline() for _ in range(2)]
        comment, name, address = process.stderr.readline().split()
        process.terminate()
        assert process.stdout.read() == ""
    assert all(line.startswith("export ") for line in variables)
    assert (comment, name) == ("#", "console:")
    assert address.startswith(variables[0].partition("=")[2].strip() + "/-/console?key=")


def test_without_a_socket_there_is_no_console():
    with LocalUpstash(listen=False) as upstash, httpx.Client(transport=upstash.transport) as client:
        assert client.get(upstash.console_url).status_code == 403


def test_a_database_that_is_gone_is_told_as_a_page():
    database = LocalUpstash()
    database.start()
    with (
        LocalUpstash(redis=database.redis_url) as upstash,
        httpx.Client(follow_redirects=True) as client,
    ):
        client.get(upstash.console_url)
        database.stop()
        answer = client.get(upstash.url + handlers.KEYS)
    assert answer.status_code == 500
    assert "The database cannot be reached" in text_of(answer)
