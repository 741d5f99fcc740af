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
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.local.scene import visits
from upstash_middleware import RateLimitRule, SyncLimiter
from upstash_middleware.core.ratelimit.algorithms import ALGORITHMS
from upstash_middleware.core.ratelimit.algorithms.limit import Limit, State
from upstash_middleware.local import LocalUpstash
from upstash_middleware.local.console import handlers
from upstash_middleware.starlette import SessionMiddleware, session
from upstash_middleware.wsgi import RateLimitMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.requests import Request
    from upstash_redis import Redis

PAGES = [
    handlers.KEYS,
    f"{handlers.KEY}?key=k",
    handlers.BILL,
    handlers.LIVE,
    handlers.FAULTS,
]
ACTIONS = [handlers.DELETE, handlers.FLUSH, handlers.RESET_BILL, handlers.FAULTS]
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
    given = "" if address == handlers.KEYS or "?" in address else "?key=k"
    answer = httpx.request(method, upstash.url + address + given)
    assert answer.status_code == 401
    assert "the-value" not in answer.text
    assert redis.get("k") == "the-value"
    assert "set-cookie" not in answer.headers


def test_the_printed_address_lets_in_and_does_not_stay_in_the_address_bar(upstash: LocalUpstash):
    answer = httpx.get(upstash.console_url)
    assert (answer.status_code, answer.headers["location"]) == (303, handlers.KEYS)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"upstash-console-{upstash.port}=")
    for attribute in ("HttpOnly", "SameSite=Strict", f"Path={handlers.KEYS}"):
        assert attribute in cookie
    assert upstash.token not in cookie + upstash.console_url


@pytest.mark.parametrize(("given", "status"), [("right", 200), ("wrong", 401), ("read-only", 401)])
def test_the_token_lets_in_too_and_no_other(upstash: LocalUpstash, given: str, status: int):
    token = {"right": upstash.token, "read-only": upstash.read_only_token}.get(given, given)
    with httpx.Client(base_url=upstash.url, follow_redirects=True) as client:
        answer = client.post(handlers.LOGIN, data={"token": token})
        assert answer.status_code == status
        assert ("That is not this server's token." in text_of(answer)) is (status == 401)
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
    assert "IP address or as localhost" in text_of(answer)


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
    fields = {"fault": "quota", "key": "k", **secret}
    assert browser.post(address, data=fields).status_code == 403
    assert browser.post(of_key("k", address), data=secret).status_code == 403
    assert redis.get("k") == "v"
    assert upstash.bill().by_command["SET"] == 1


@pytest.mark.parametrize("address", [handlers.DELETE, handlers.FLUSH, handlers.RESET_BILL])
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
        given.get("id") for tag, given in found if tag == "input" and given.get("type") != "hidden"
    }
    assert fields == labelled


def test_head_has_the_head_of_a_page_and_opens_no_stream(browser: httpx.Client):
    answer = browser.head(handlers.BILL)
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


# Keys.


def test_keys_show_what_the_middleware_keeps_for_what_it_is(
    upstash: LocalUpstash, browser: httpx.Client
):
    for _ in visits(upstash):
        pass
    page = browser.get(handlers.KEYS).text
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page)
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


def test_a_beginning_is_taken_as_it_is_and_a_pattern_as_a_pattern(
    redis: Redis, browser: httpx.Client
):
    for key in ("user:1", "user:2", "users", "a\\b", "other"):
        redis.set(key, "v")

    def search(words: str) -> list[str]:
        return keys_of(browser.get(handlers.KEYS, params={"q": words}).text)

    assert search("user:") == ["user:1", "user:2"]
    assert search("a\\") == ["a\\b"]
    assert search("*r?") == ["users"]
    assert search("nothing") == []
    assert len(search("")) == 5


def test_every_key_is_on_one_of_the_pages(redis: Redis, browser: httpx.Client):
    names = {f"many:{number}" for number in range(500)}
    redis.mset(dict.fromkeys(names, "v"))
    seen: list[str] = []
    answer = browser.get(handlers.KEYS, params={"q": "many:"})
    pages = 0
    while True:
        pages += 1
        seen += keys_of(answer.text)
        onward = [link for link in Elements(answer.text).links() if "cursor=" in link]
        if not onward:
            break
        answer = browser.get(onward[0])
        assert "From the beginning" in answer.text
    assert pages > 2
    assert set(seen) == names


def test_a_rare_key_is_found_among_many_others(redis: Redis, browser: httpx.Client):
    redis.mset({f"other:{number}": "v" for number in range(3000)})
    redis.set("rare", "v")
    assert keys_of(browser.get(handlers.KEYS, params={"q": "rare"}).text) == ["rare"]


def test_a_key_that_never_expires_says_so(redis: Redis, browser: httpx.Client):
    redis.set("for-ever", "v")
    redis.set("for-a-while", "v", ex=10_000)
    assert "for-ever string never" in text_of(browser.get(handlers.KEYS, params={"q": "for-e"}))
    assert re.search(r"for-a-while string 2.8 h", text_of(browser.get("/-/console?q=for-a")))


def test_an_empty_database_says_what_to_do(browser: httpx.Client):
    assert "The database is empty." in text_of(browser.get(handlers.KEYS))
    assert browser.get(f"{handlers.KEYS}?cursor=nonsense").status_code == 200


# One key.


def visit_with_a_session(upstash: LocalUpstash, **settings: Any) -> None:
    """Log in, so that there is a session bound to a user."""

    async def log_in(request: Request) -> PlainTextResponse:
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
    assert "State over ended with all sessions of its user" in text_of(browser.get(of_key(key)))
    submit(browser, of_key(key, handlers.DELETE))
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
    assert "Lifetime 5 min While revalidating 2 min" in said
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
    assert "One process renders this" in text_of(
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
    assert f"Kind {algorithm.title}" in text_of(browser.get(of_key(key)))
    assert "Rate limit Rule / Identifier 127.0.0.1" in text_of(browser.get(of_key(key)))


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
    assert "the first part" in text_of(answer)
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
    assert "The key is deleted." in text_of(submit(browser, of_key(key, handlers.DELETE)))
    assert http.get("/dbsize").json() == {"result": 0}
    assert browser.get(link).status_code == 404
    assert "gone already" in text_of(submit(browser, of_key(key, handlers.DELETE)))


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
    answer = browser.get(handlers.BILL)
    said = text_of(answer)
    assert "A million such requests $4.00" in said
    assert "Commands per request 2.00" in said
    assert re.search(r"GET 2 50% .* EVAL 1 25% .* SET 1 25%", said)
    assert "Commands over the last 2 min: 4 in all" in said
    assert answer.text.count("<rect ") >= 3
    assert "Commands over the last 6 h: 4" in text_of(browser.get(f"{handlers.BILL}?span=21600"))
    assert "Commands over the last 2 min: 4" in text_of(browser.get(f"{handlers.BILL}?span=7"))


def test_a_new_bill_begins_a_new_chart(upstash: LocalUpstash, redis: Redis, browser: httpx.Client):
    redis.set("k", "v")
    assert "1 in all" in text_of(browser.get(handlers.BILL))
    said = text_of(submit(browser, handlers.RESET_BILL))
    assert "A new bill has begun." in said
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
        assert "Faults drop-before, 60000 ms late" in text_of(answer)


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
