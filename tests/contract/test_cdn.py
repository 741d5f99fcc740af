"""A CDN in front: the tags and lifetimes that it reads, and the purges that are passed on to it."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule, ConfigurationError, Purge, PurgeNotPassedOn, UpstashError
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served

TOKEN = "a token of 20 characters"
RULE = CacheRule("/products/{id}", ttl=60, tags=("product:{id}",))
COMMON = ["everything", "under:/products/", "rule:/products/{id}", "url:/products/7?a=1"]
TAGS = [*COMMON, "product:7", "product"]
ALL_TAG_FIELDS = {
    "Cache-Tag",
    "Surrogate-Key",
    "Vercel-Cache-Tag",
    "Netlify-Cache-Tag",
    "Edge-Cache-Tag",
}


def cached(*rules: CacheRule, **settings: Any) -> tuple[str, Any]:
    given = {"cache": list(rules) or [RULE], "purge_directories": True, **settings}
    return "CacheMiddleware", given


def page(request: Seen) -> Reply:
    """Return a page; a POST purges what its path names."""
    if request.method == "POST":
        assert request.purge is not None
        try:
            request.purge(**PURGES[request.path])
        except PurgeNotPassedOn as error:
            return Reply(f"{error} / {error.__cause__!r}".encode(), 500)
        except (UpstashError, ValueError) as error:
            return Reply(str(error).encode(), 503)
        return Reply(b"purged")
    return Reply(b"page", headers=(("content-type", "text/plain"),))


PURGES: dict[str, dict[str, Any]] = {
    "/tag": {"tags": ["product:7"], "soft": True},
    "/refused": {"tags": ["\ud800", "x" * 1025, "a, b"]},
    "/long": {"tags": ["x" * 1024]},
    "/directory": {"directories": ["/products/"]},
    "/rule": {"rules": ["/products/{id}"]},
    "/everything": {"everything": True},
    "/wrong": {"directories": ["/products"]},
}


@pytest.mark.parametrize(
    ("cdn", "field", "separator"),
    [
        ("cloudflare", "Cache-Tag", ","),
        ("fastly", "Surrogate-Key", " "),
        ("vercel", "Vercel-Cache-Tag", ","),
        ("netlify", "Netlify-Cache-Tag", ","),
        ("akamai", "Edge-Cache-Tag", ","),
    ],
)
def test_a_miss_and_a_hit_carry_the_tags_in_the_field_that_the_cdn_reads(
    serve: Serve, cdn: str, field: str, separator: str
):
    """Those of the response, and of all else by which it can be purged."""
    expected = TAGS
    if cdn == "akamai":  # reads neither colons nor braces
        expected = [quote(tag, safe="/") for tag in TAGS]
    served = serve(page, cached(cdn=cdn))
    for hit in (False, True):
        answer = served.request("GET", "/products/7?a=1")
        assert ("; hit" in (answer.header("cache-status") or "")) is hit
        assert (answer.header(field) or "").split(separator) == expected
        assert all(answer.header(other) is None for other in ALL_TAG_FIELDS - {field})


def test_no_tag_of_the_application_stands_for_more_than_its_own(serve: Serve):
    """Somebody may call a category "everything", or "url:/"; a purge of it is one of that tag."""
    passed: list[Purge] = []

    def tagging(request: Seen) -> Reply:
        if request.method == "POST":
            assert request.purge is not None
            request.purge(tags=["everything", "url:/", "tag:url", "urls"])
            return Reply(b"")
        return Reply(b"page", headers=(("cache-tag", "everything, url:/, tag:url, urls"),))

    rule = CacheRule("/about", ttl=60)
    served = serve(tagging, cached(rule, cdn="fastly", on_purge=passed.append))
    answer = served.request("GET", "/about")
    served.request("POST", "/purge")
    own = ["tag:everything", "tag:url:/", "tag:tag:url", "urls"]
    assert list(passed[0].cdn_tags) == own
    sent = (answer.header("surrogate-key") or "").split()
    assert sent[:3] == ["everything", "rule:/about", "url:/about"]
    assert {*own} <= {*sent}


def test_the_application_s_tags_are_sent_in_the_field_that_the_cdn_reads(serve: Serve):
    """And in no other."""

    def tagging(_: Seen) -> Reply:
        return Reply(b"page", headers=(("cache-tag", "a b, c"), ("surrogate-key", "d")))

    served = serve(tagging, cached(CacheRule("/about", ttl=60), cdn="fastly"))
    for _ in range(2):
        answer = served.request("GET", "/about")
        assert (answer.header("surrogate-key") or "").split()[3:] == ["a%20b", "c", "d"]
        assert answer.header("cache-tag") is None


def test_without_the_setting_responses_are_as_the_application_made_them(serve: Serve):
    def tagging(_: Seen) -> Reply:
        return Reply(b"page", headers=(("cache-tag", "a, b"),))

    served = serve(tagging, cached())
    for _ in range(2):
        assert served.request("GET", "/products/7").header("cache-tag") == "a, b"


@pytest.mark.parametrize(
    "headers",
    [(("set-cookie", "a=b"),), (("cache-control", "private"),), (("cache-control", "no-store"),)],
)
def test_what_is_not_stored_here_gets_no_tags(serve: Serve, headers: tuple[tuple[str, str], ...]):
    """Nothing says that the CDN may store it."""
    served = serve(lambda _: Reply(b"page", headers=headers), cached(cdn="fastly"))
    assert served.request("GET", "/products/7").header("surrogate-key") is None


def test_under_a_rule_that_selects_by_user_the_cdn_may_not_store_anything(serve: Serve):
    """It does not know the user, and would send anonymous visitors' pages to users as well."""
    rule = CacheRule("/products/{id}", ttl=60, user=lambda request: request.headers.get("x-user"))
    served = serve(page, cached(rule, cdn="fastly"))
    for user in ("7", None):
        headers = () if user is None else (("x-user", user),)
        for hit in (False, True):
            answer = served.request("GET", "/products/7", headers)
            assert ("; hit" in (answer.header("cache-status") or "")) is hit
            assert answer.header("surrogate-key") is None
            assert answer.header("surrogate-control") == "no-store, max-age=0"


@pytest.mark.parametrize(
    ("cdn", "field"),
    [
        ("cloudflare", "Cloudflare-CDN-Cache-Control"),
        ("fastly", "Surrogate-Control"),
        ("vercel", "Vercel-CDN-Cache-Control"),
        ("netlify", "Netlify-CDN-Cache-Control"),
        ("akamai", "Edge-Control"),
    ],
)
def test_a_rule_says_how_long_the_cdn_keeps_its_responses(serve: Serve, cdn: str, field: str):
    """Browsers get ``downstream``."""
    rule = CacheRule("/products/{id}", 60, downstream="private", downstream_cdn="max-age=86400")
    served = serve(page, cached(rule, cdn=cdn))
    for _ in range(2):
        answer = served.request("GET", "/products/7")
        assert answer.header(field) == "max-age=86400"
        assert answer.header("cache-control") == "private"


CONTROLS = {
    "cloudflare": "Cloudflare-CDN-Cache-Control",
    "fastly": "Surrogate-Control",
    "vercel": "Vercel-CDN-Cache-Control",
    "netlify": "Netlify-CDN-Cache-Control",
    "akamai": "Edge-Control",
}


@pytest.mark.parametrize("vary", ["Cookie", "Accept-Language", "Accept-Encoding, Cookie"])
@pytest.mark.parametrize("cdn", CONTROLS)
def test_only_a_cdn_that_honours_vary_may_store_a_page_that_varies(
    serve: Serve, cdn: str, vary: str
):
    """Another one would send the page of one visitor, with its session, to all."""
    rule = CacheRule("/products/{id}", 60, downstream_cdn="max-age=86400")
    served = serve(lambda _: Reply(b"yours", headers=(("vary", vary),)), cached(rule, cdn=cdn))
    sent = (("cookie", "session=ada"), ("accept-language", "de"), ("accept-encoding", "gzip"))
    for hit in (False, True):
        answer = served.request(
            "GET", "/products/7", sent if vary != "Accept-Language" else sent[1:]
        )
        assert ("; hit" in (answer.header("cache-status") or "")) is hit
        tags = [answer.header(name) for name in ALL_TAG_FIELDS]
        if cdn in {"fastly", "netlify"}:
            assert answer.header(CONTROLS[cdn]) == "max-age=86400"
            assert any(tags)
        else:
            assert answer.header(CONTROLS[cdn]) == "no-store, max-age=0"
            assert not any(tags)


@pytest.mark.parametrize("cdn", CONTROLS)
def test_a_page_in_several_codings_is_stored_by_each_cdn(serve: Serve, cdn: str):
    """Each distinguishes them."""
    rule = CacheRule("/products/{id}", 60, downstream_cdn="max-age=86400")
    headers = (("vary", "Accept-Encoding"),)
    served = serve(lambda _: Reply(b"page", headers=headers), cached(rule, cdn=cdn))
    assert served.request("GET", "/products/7").header(CONTROLS[cdn]) == "max-age=86400"


@pytest.mark.parametrize("downstream", [None, "max-age=30", "private"])
@pytest.mark.parametrize(
    ("selects", "named"),
    [({"vary_cookies": ("theme",)}, "Cookie"), ({"vary_headers": ("X-Tenant",)}, "x-tenant")],
)
def test_what_a_rule_selects_by_keeps_a_page_from_a_cdn_that_cannot(
    serve: Serve, selects: dict[str, Any], named: str, downstream: str | None
):
    """Whatever the application says to it, whose Vary does not name that."""
    headers = (("cdn-cache-control", "max-age=60"), ("cache-tag", "a"))
    rule = CacheRule("/about", 60, downstream=downstream, **selects)
    for_cdn = CacheRule("/news", 60, downstream=downstream, downstream_cdn="max-age=9", **selects)
    for path in ("/about", "/news"):
        settings = {"cache_targets": ("CDN-Cache-Control",)}
        given = cached(rule, for_cdn, cdn="cloudflare", **settings)
        served = serve(lambda _: Reply(b"page", headers=headers), given)
        for _ in range(2):
            answer = served.request("GET", path)
            assert answer.header("cloudflare-cdn-cache-control") == "no-store, max-age=0"
            assert answer.header("cache-tag") is None
    served = serve(page, cached(for_cdn, cdn="fastly"))
    for _ in range(2):
        answer = served.request("GET", "/news")
        assert answer.header("surrogate-control") == "max-age=9"
        assert answer.header("vary") == named


@pytest.mark.parametrize(
    ("status", "given", "sent"),
    [
        (200, "max-age=3600", "max-age=3600"),
        (301, "max-age=3600", "max-age=3600"),
        (404, "max-age=3600", "max-age=5"),
        (
            404,
            "public, s-maxage=1h, stale-while-revalidate=60",
            "public, s-maxage=5, stale-while-revalidate=5",
        ),
        (404, "max-age=3600+600", "max-age=5"),
        (404, "max-age=0, must-revalidate", "max-age=0, must-revalidate"),
        (404, "private, no-store", "private, no-store"),
        (503, "max-age=1m", "max-age=5"),
    ],
)
def test_other_caches_keep_an_error_no_longer_than_its_own_ttl(
    serve: Serve, status: int, given: str, sent: str
):
    """``downstream`` and ``downstream_cdn`` are written for pages."""
    ttl = {200: 60, 301: 60, 404: 5, 503: 5}
    rule = CacheRule("/products/{id}", ttl, downstream=given, downstream_cdn=given)
    served = serve(lambda _: Reply(b"page", status), cached(rule, cdn="akamai"))
    for hit in (False, True):
        answer = served.request("GET", "/products/7")
        assert ("; hit" in (answer.header("cache-status") or "")) is hit
        assert answer.header("cache-control") == sent
        assert answer.header("edge-control") == sent


def test_a_response_that_explains_itself_is_for_no_cdn(serve: Serve):
    secret = "s" * 32
    rule = CacheRule("/products/{id}", 60, downstream_cdn="max-age=86400")
    for cdn, control in CONTROLS.items():
        served = serve(page, cached(rule, cdn=cdn, cache_debug=secret))
        served.request("GET", "/products/7")
        answer = served.request("GET", "/products/7", (("upstash-cache-debug", secret),))
        assert answer.header("cache-control") == "private, no-store"
        assert answer.header(control) is None


def test_what_has_more_tags_than_the_cdn_reads_is_not_stored_there(serve: Serve):
    """No purge would find it."""
    tags = ",".join(f"t{number}" for number in range(126))
    served = serve(
        lambda _: Reply(b"page", headers=(("cache-tag", tags),)),
        cached(CacheRule("/about", ttl=60, downstream_cdn="max-age=60"), cdn="vercel"),
    )
    for hit in (False, True):
        answer = served.request("GET", "/about")
        assert ("; hit" in (answer.header("cache-status") or "")) is hit
        assert answer.header("vercel-cdn-cache-control") == "no-store, max-age=0"
        assert answer.header("vercel-cache-tag") is None


class Passed:
    """An ``on_purge`` that looks whether Redis has the purge, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.purges: list[Purge] = []
        self.hits: list[bool] = []
        self.look: Callable[[], bool] | None = None
        self.error = error

    def __call__(self, purge: Purge) -> None:
        self.purges.append(purge)
        if self.look is not None:
            self.hits.append(self.look())
        if self.error is not None:
            raise self.error


class PassedAsync(Passed):
    """The same as a coroutine function."""

    async def __call__(self, purge: Purge) -> None:  # type: ignore[override]
        super().__call__(purge)


kinds = pytest.mark.parametrize("kind", [Passed, PassedAsync], ids=["sync", "async"])


@kinds
@pytest.mark.parametrize(
    ("path", "tags"),
    [
        ("/tag", ("product:7",)),
        ("/directory", ("under:/products/",)),
        ("/rule", ("rule:/products/{id}",)),
        ("/everything", ("everything",)),
    ],
)
def test_a_purge_is_passed_on_with_the_tags_that_responses_carry(
    serve: Serve, kind: type[Passed], path: str, tags: tuple[str, ...]
):
    passed = kind()
    served = serve(page, cached(cdn="fastly", on_purge=passed))
    carried = (served.request("GET", "/products/7").header("surrogate-key") or "").split()
    assert served.request("POST", path).body == b"purged"
    (purge,) = passed.purges
    assert purge.cdn_tags == tags
    assert set(tags) <= {*carried}
    assert purge.soft is (path == "/tag")


@pytest.mark.parametrize(
    ("path", "tags"),
    [
        ("/refused", ("a%2C%20b",)),
        ("/long", ("~" + sha256(b"x" * 1024).hexdigest(),)),
    ],
)
def test_tags_are_passed_on_as_the_cdn_reads_them(serve: Serve, path: str, tags: tuple[str, ...]):
    """Escaped, or a digest of one that is too long; and none that no response can have."""
    passed = Passed()
    served = serve(page, cached(cdn="vercel", on_purge=passed))
    assert served.request("POST", path).body == b"purged"
    assert passed.purges[0].cdn_tags == tags


def is_hit(served: Served) -> bool:
    return "; hit" in (served.request("GET", "/products/7").header("cache-status") or "")


@kinds
def test_a_failure_to_pass_a_purge_on_reaches_its_caller(serve: Serve, kind: type[Passed]):
    """The purge is done on Redis, and the cause is there."""
    served = serve(page, cached(cdn="fastly", on_purge=kind(RuntimeError("the CDN is down"))))
    served.request("GET", "/products/7")
    assert is_hit(served)
    answer = served.request("POST", "/tag")
    assert answer.status == 500
    assert b"the CDN is down / RuntimeError('the CDN is down')" in answer.body
    assert "fwd=stale" in (served.request("GET", "/products/7").header("cache-status") or "")


@pytest.mark.parametrize("path", ["/wrong", "/tag"])
def test_a_purge_that_was_not_carried_out_is_not_passed_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str
):
    """Neither one that is wrong nor one that Upstash did not hear of."""
    passed = Passed()
    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9")
    served = serve(page, cached(cdn="fastly", on_purge=passed))
    assert served.request("POST", path).status == 503
    assert passed.purges == []


def test_an_unsafe_request_is_not_passed_on(serve: Serve):
    """Any visitor could have the CDN called."""
    passed = Passed()
    served = serve(page, cached(cdn="fastly", on_purge=passed))
    served.request("GET", "/products/7")
    served.request("PUT", "/products/7")
    assert not is_hit(served)
    assert passed.purges == []


def test_the_purge_endpoint_passes_on_and_says_so_if_that_fails(serve: Serve):
    passed = Passed()
    settings = {"cdn": "vercel", "on_purge": passed, "purge_path": "/p", "purge_token": TOKEN}
    served = serve(page, cached(**settings))
    authorized = (("authorization", f"Bearer {TOKEN}"),)
    served.request("GET", "/products/7")
    answer = served.request("POST", "/p?url=/products/7", authorized)
    assert answer.status == 200
    assert passed.purges[0].cdn_tags == ("url:/products/7",)
    assert not is_hit(served)
    assert is_hit(served)
    passed.error = RuntimeError("the CDN is down")
    answer = served.request("POST", "/p?url=/products/7", authorized)
    assert (answer.status, b"not passed on" in answer.body) == (502, True)
    assert not is_hit(served)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cdn": "mine"}, "'mine' should be 'cloudflare' or 'fastly'"),
        ({"on_purge": "mine"}, "should be a function of one Purge"),
        (
            {"cache": [{"path": "/a", "downstream_cdn": "max-age=5"}]},
            r"cache\[0\].*downstream_cdn.*needs the setting cdn",
        ),
    ],
)
def test_wrong_settings_of_a_cdn_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        settings_from({"cache": [RULE], **settings}, {})


@pytest.mark.parametrize("on_purge", [None, lambda _: None])
def test_a_cdn_that_no_purge_reaches_is_reported(
    serve: Serve, caplog: pytest.LogCaptureFixture, on_purge: Any
):
    """Once, with the first request."""
    served = serve(page, cached(cdn="fastly", **({"on_purge": on_purge} if on_purge else {})))
    for _ in range(2):
        served.request("GET", "/products/7")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    about = [line for line in said if line.startswith("cdn: it is 'fastly', but on_purge is not")]
    assert len(about) == (1 if on_purge is None else 0)


def test_the_log_says_what_a_failure_of_on_purge_means(
    serve: Serve, caplog: pytest.LogCaptureFixture
):
    """In the endpoint nobody else is told more than that it failed."""

    def on_purge(_: Purge) -> None:
        raise RuntimeError("the CDN is down")

    given = {"purge_path": "/purge", "purge_token": TOKEN, "on_purge": on_purge}
    served = serve(page, cached(cdn="fastly", **given))
    sent = (("authorization", f"Bearer {TOKEN}"),)
    assert served.request("POST", "/purge?url=/a", sent).status == 502
    (said,) = [e.getMessage() for e in caplog.records if e.name == "upstash_middleware"]
    assert said.startswith("on_purge raised: the purge is done on Redis, but was")
