"""``cache``: what is stored, why it missed, purging, and what a scan finds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient
from upstash_redis import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Call
    from upstash_middleware.local import LocalUpstash

ORIGIN = "http://shop.example"


@pytest.fixture
def client(shop: str, upstash: LocalUpstash) -> Iterator[TestClient]:
    """Return a client of the application that the command is called about."""
    module = importlib.import_module(shop.partition(":")[0])
    with TestClient(module.app, base_url=ORIGIN) as client:
        yield client


def test_what_is_stored_is_a_hit_with_its_age_freshness_tags_and_variant(
    call: Call, shop: str, client: TestClient
) -> None:
    """Exit code 0: the next request like this is answered from here."""
    client.get("/products/7", headers={"Accept": "text/html"})
    told = call(
        *("cache", "explain", f"{ORIGIN}/products/7", "--app", shop, "--json"),
        *("-H", "Accept: text/html"),
    )
    assert told.code == 0
    data = told.data
    assert (data["outcome"], data["rule"], data["status"]) == ("hit", "cache[0]", 200)
    assert data["key"] == "upstash-middleware:cache:entry:http://shop.example/products/7"
    assert data["variant"].startswith(data["key"] + "#")
    assert (data["vary"], data["tags"]) == (["accept"], ["product:7", "product"])
    assert (data["lifetime"], data["length"]) == (60.0, 4)
    assert 0 <= data["age"] < 60


@pytest.mark.parametrize(
    ("url", "outcome", "why"),
    [
        ("/products/8", "uri-miss", "nothing is stored for this URL"),
        ("/products/7", "vary-miss", "it is stored for other values of accept"),
        ("/inner/x", "bypass", "no rule of the cache covers it"),
    ],
)
def test_a_miss_says_why_and_is_an_exit_code_of_1(
    call: Call, shop: str, client: TestClient, url: str, outcome: str, why: str
) -> None:
    """In RFC 9211's word and in words."""
    client.get("/products/7", headers={"Accept": "text/html"})
    told = call("cache", "explain", ORIGIN + url, "--app", shop, "--json")
    assert (told.code, told.data["outcome"]) == (1, outcome)
    assert why in told.data["why"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("/products/7",), "this URL has been purged"),
        (("--tag", "product"), "the tag 'product' has been purged"),
        (("--directory", "/products/"), "the directory '/products/' has been purged"),
        (("--rule", "/products/{id}"), "the rule '/products/{id}' has been purged"),
        (("--everything",), "everything has been purged"),
    ],
)
def test_what_was_purged_says_by_what(
    call: Call, shop: str, client: TestClient, words: tuple[str, ...], why: str
) -> None:
    """Purging needs no application: the prefix is enough."""
    client.get("/products/7?vary=X-A")
    url = ("cache", "explain", f"{ORIGIN}/products/7?vary=X-A", "--app", shop)
    assert call(*url).code == 0
    given = tuple(word.replace("/7", "/7?vary=X-A") for word in words)
    assert call("cache", "purge", *given).code == 0
    told = call(*url, "--json")
    assert told.code == 1
    assert why in told.data["why"]
    status = client.get("/products/7?vary=X-A").headers["cache-status"]
    assert f"fwd={told.data['outcome']};" in status


def test_without_the_application_a_purge_says_that_nothing_was_checked(
    call: Call, shop: str, client: TestClient
) -> None:
    """Nor whether any application uses the prefix."""
    told = call("cache", "purge", "/products/7", "--prefix", "another")
    assert told.code == 0
    assert told.out.startswith("recorded as purged: /products/7 (under another)")
    assert "nothing was checked" in told.out
    told = call("cache", "purge", "/products/7", "--app", shop)
    assert told.out.strip() == "purged: /products/7 (under upstash-middleware)"
    assert call("cache", "purge", "--everything", "--json").data["checked"] is False


def test_a_miss_says_where_to_see_what_only_the_real_request_shows(
    call: Call, shop: str, client: TestClient
) -> None:
    told = call("cache", "explain", f"{ORIGIN}/products/8", "--app", shop)
    assert "Upstash-Cache-Debug" in told.out
    client.get("/products/7", headers={"Accept": "text/html"})
    url = ("cache", "explain", f"{ORIGIN}/products/7", "-H", "Accept: text/html")
    told = call(*url, "--app", shop)
    assert told.code == 0
    assert "Upstash-Cache-Debug" not in told.out


PASSING_ON = """
from upstash_middleware import CacheRule
from upstash_middleware.asgi import CacheMiddleware

passed = []


async def application(scope, receive, send):
    pass


def on_purge(purge):
    passed.append(purge.cdn_tags)
    if purge.everything:
        raise RuntimeError("the CDN is down")


app = CacheMiddleware(application, cache=[CacheRule("/a")], cdn="fastly", on_purge=on_purge)
"""


def test_a_purge_is_passed_on_by_the_application_s_function_and_a_failure_has_its_own_exit_code(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """The purge itself is done then."""
    name = module(PASSING_ON)
    assert call("cache", "purge", "/a", "--app", f"{name}:app").code == 0
    told = call("cache", "purge", "--everything", "--app", f"{name}:app", "--json")
    assert (told.code, told.data["error"]["kind"]) == (6, "on_purge")
    assert "RuntimeError: the CDN is down" in told.data["error"]["message"]
    assert importlib.import_module(name).passed == [("url:/a",), ("everything",)]
    with Redis(upstash.url, upstash.token) as redis:
        assert redis.exists("upstash-middleware:cache:epoch:all")


def test_a_soft_purge_leaves_it_stale(call: Call, shop: str, client: TestClient) -> None:
    """To be validated, or used while it is fetched anew, as its rule says."""
    client.get("/products/7")
    call("cache", "purge", "--soft", "/products/7")
    told = call("cache", "explain", f"{ORIGIN}/products/7", "-H", "Accept: */*", "--app", shop)
    assert "no hit (stale): this URL has been purged softly" in told.out


def test_a_list_shows_each_entry_with_its_bytes_and_its_end(
    call: Call, shop: str, client: TestClient
) -> None:
    """Under the prefix alone, and of URLs that contain a text."""
    for number in range(3):
        client.get(f"/products/{number}", headers={"Accept": "a"})
    client.get("/products/1", headers={"Accept": "b"})
    data = call("cache", "list", "--json").data
    assert data["count"] == len(data["entries"]) == 7  # three stubs, and four variants
    assert {one["url"] for one in data["entries"]} == {f"{ORIGIN}/products/{n}" for n in range(3)}
    assert all(one["size"] > 0 and 0 < one["expires_in"] <= 3700 for one in data["entries"])
    found = call("cache", "list", "--containing", "products/1", "--json").data
    assert found["count"] == 3
    assert call("cache", "list", "--prefix", "another", "--json").data["count"] == 0
    assert "7 entries are stored under upstash-middleware, the first 2" in (
        call("cache", "list", "--limit", "2").out
    )


def test_a_scan_says_what_it_was_billed(
    call: Call, shop: str, client: TestClient, upstash: LocalUpstash
) -> None:
    """As the server counts it."""
    client.get("/products/7")
    upstash.reset_bill()
    told = call("cache", "list", "--json").data
    assert told["billed_commands"] == upstash.bill().commands


def test_a_text_to_look_for_is_no_pattern(call: Call, shop: str, client: TestClient) -> None:
    """An asterisk is an asterisk."""
    client.get("/products/7")
    assert call("cache", "list", "--containing", "products/*", "--json").data["count"] == 0


def test_keys_that_are_no_entries_do_no_harm(call: Call, upstash: LocalUpstash) -> None:
    """Of another type, or named by what is no text."""
    start = "upstash-middleware:cache:entry:http://a"
    with Redis.from_env() as redis:
        redis.set(f"{start}/fine", "x")
        redis.lpush(f"{start}/list", "x")
        redis.eval("return redis.call('set', KEYS[1] .. '\\255', 'x')", [f"{start}/bytes"])
    entries = call("cache", "list", "--json").data["entries"]
    assert [(one["url"], one["expires_in"]) for one in entries] == [("http://a/fine", None)]
    assert "never" in call("cache", "list").out


def test_purging_works_where_the_middleware_is_switched_off(
    call: Call, shop: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever types it means it; on a machine without the middleware's own traffic too."""
    client.get("/products/7", headers={"Accept": "a"})
    monkeypatch.setenv("UPSTASH_MIDDLEWARE_ENABLED", "0")
    assert call("cache", "purge", "/products/7", "--app", shop).code == 0
    url = ("cache", "explain", f"{ORIGIN}/products/7", "-H", "Accept: a", "--app", shop)
    assert "this URL has been purged" in call(*url).out


def test_stats_count_entries_urls_variants_and_bytes(
    call: Call, shop: str, client: TestClient
) -> None:
    """And name the largest."""
    for accept in ("a", "b"):
        client.get("/products/7", headers={"Accept": accept})
    data = call("cache", "stats", "--json").data
    assert (data["entries"], data["urls"], data["variants"]) == (3, 1, 2)
    listed = call("cache", "list", "--json").data["entries"]
    assert data["bytes"] == sum(one["size"] for one in listed)
    assert data["largest"][0]["size"] == max(one["size"] for one in listed)
    assert "3, 2 of them variants" in call("cache", "stats").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("purge",), "name what to purge"),
        (("purge", "products"), "it should be a path such as '/products/7'"),
        (("explain", "/products/7"), "has no host"),
        (("explain", f"{ORIGIN}/products/7"), "no cache rules are known"),
    ],
)
def test_words_that_mean_nothing_are_an_exit_code_of_2(
    call: Call, upstash: LocalUpstash, words: tuple[str, ...], says: str
) -> None:
    """The message says what would be right."""
    told = call("cache", *words)
    assert (told.code, says in told.err) == (2, True)


def test_what_a_key_holds_commands_no_terminal(call: Call, upstash: LocalUpstash) -> None:
    """Whoever can write to the database could else write to the screen."""
    with Redis.from_env() as redis:
        redis.set("upstash-middleware:cache:entry:http://a/\x1b[31m[bold]red", "x", ex=60)
    shown = call("cache", "list").out
    assert "\x1b" not in shown
    assert "http://a/\\x1b[31m[bold]red" in shown


def test_what_is_stored_below_a_prefix_is_found_purged_and_listed_by_its_url(
    call: Call, shop: str, upstash: LocalUpstash
) -> None:
    """The prefix is given by --root-path, as the server is told it."""
    module = importlib.import_module(shop.partition(":")[0])
    with TestClient(module.app, root_path="/shop", base_url="http://shop.example") as client:
        client.get("/shop/products/7")
        url = "http://shop.example/shop/products/7"
        words = ["cache", "explain", url, "--root-path", "/shop", "--app", shop, "--json"]
        words += ["-H", "Accept: */*"]
        assert call(*words).data["outcome"] == "hit"
        assert call("cache", "explain", url, "--app", shop, "--json").data["outcome"] == "bypass"
        listed = call("cache", "list", "--app", shop, "--containing", url, "--json").data["entries"]
        assert {one["url"] for one in listed} == {url}
        assert call("cache", "purge", "/shop/products/7", "--app", shop).code == 0
        assert call(*words).data["outcome"] != "hit"


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("path", "fields", "why", "advice"),
    [
        ("/products/9", ["Cookie: _ga=1; visitor=7"], "cookies ('visitor')", "('visitor',)"),
        ("/products/9", ["Authorization: Bearer 7"], "has Authorization", "set user="),
        ("/products/9", ["Cookie: _ga=1"], "nothing is stored for this URL", "Cache-Status"),
    ],
)
def test_a_miss_is_explained_with_the_setting_that_would_change_it(
    shop: str, call: Call, path: str, fields: list[str], why: str, advice: str
) -> None:
    words = [word for field in fields for word in ("-H", field)]
    told = call("cache", "explain", f"{ORIGIN}{path}", *words, "--app", shop, "--json")
    assert told.data["outcome"] == "uri-miss"
    assert why in told.data["why"]
    assert advice in told.data["advice"]
