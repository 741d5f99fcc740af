"""``limits``: what is told, what is taken, and which exit code a script reads."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from starlette.testclient import TestClient

from upstash_middleware.decorators import exempt
from upstash_middleware.flask import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Call
    from upstash_middleware.local import LocalUpstash

WHO = "203.0.113.7"


@pytest.fixture
def client(shop: str, upstash: LocalUpstash) -> Iterator[TestClient]:
    """Return a client of the application that the command is called about."""
    module = importlib.import_module(shop.partition(":")[0])
    with TestClient(module.app, client=(WHO, 1)) as client:
        yield client


def test_a_peek_tells_what_is_left_and_takes_nothing(
    call: Call, shop: str, client: TestClient
) -> None:
    """However often it is asked."""
    client.post("/api/generate")
    for _ in range(3):
        told = call("limits", "peek", "generate", WHO, "--app", shop, "--json")
        assert told.code == 0
        (rule,) = told.data["rules"]
        assert (rule["rule"], rule["identifier"]) == ("generate", f"ip={WHO}")
        assert (rule["limit"], rule["remaining"], rule["retry_after"]) == (2, 1, None)
        assert rule["keys"][0].startswith("upstash-middleware:generate:ip=203.0.113.7:")


def test_who_is_denied_is_an_exit_code_of_1_and_a_reset_ends_it(
    call: Call, shop: str, client: TestClient
) -> None:
    """And the words say for how long."""
    for _ in range(2):
        client.post("/api/generate")
    denied = call("limits", "peek", "generate", WHO, "--app", shop)
    assert denied.code == 1
    assert "denied by generate: passes in " in denied.out
    assert call("limits", "reset", "generate", WHO, "--app", shop).code == 0
    allowed = call("limits", "peek", "generate", WHO, "--app", shop)
    assert (allowed.code, "allowed by generate" in allowed.out) == (0, True)


def test_explain_names_the_rule_that_covers_a_request(
    call: Call, shop: str, client: TestClient
) -> None:
    """The request is described by the words: its method, its address."""
    words = ("limits", "explain", "--app", shop, "--peer", WHO, "--json")
    client.post("/api/generate")
    post = call(*words, "/api/generate", "-X", "post").data
    assert [(one["setting"], one["remaining"]) for one in post["rules"]] == [("rate_limits[0]", 1)]
    get = call(*words, "http://shop.example/elsewhere").data
    assert [one["setting"] for one in get["rules"]] == ["default_limit"]


LEASES = """
from upstash_middleware import RateLimitRule

def tiers(request):
    if request.path.endswith("own"):
        return "5/s lease 3s"
    return "500/s" if request.path.endswith("big") else "5/s"

S = {
    "lease": "2s",
    "rate_limits": [
        RateLimitRule("/own", "5/s lease 500ms", name="own"),
        RateLimitRule("/none", "500/s", name="none", lease=False),
        RateLimitRule("/small", "5/s", name="small"),
        RateLimitRule("/tiers/{size}", tiers, name="tiers"),
        RateLimitRule("/fast", "5/s", name="fast", lease={"share": 0.5, "from_rate": 20}),
    ],
    "default_limit": "500/s",
}
"""


def test_limits_are_shown_with_the_lease_of_the_rule_or_the_application(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    app = f"{module(LEASES)}:S"
    listed = call("limits", "list", "--app", app, "--json").data["limits"]
    applications = {"seconds": 2, "share": 0.1, "from_rate": None}
    assert {one["name"]: one["lease"] for one in listed if one["where"] != "code"} == {
        "own": {"seconds": 0.5, "share": 0.1, "from_rate": None},
        "none": None,
        "small": None,
        "tiers": applications,
        "fast": {"seconds": 1, "share": 0.5, "from_rate": 20},
        "default": applications,
    }
    assert "1 s, share 0.5, from 20/s" in call("limits", "list", "--app", app).out

    def explained(path: str) -> Any:
        (rule,) = call("limits", "explain", path, "--app", app, "--json").data["rules"]
        return rule["lease"]

    for path in ("/none", "/small", "/tiers/small"):
        assert explained(path) is None
        assert "lease" not in call("limits", "explain", path, "--app", app).out
    for path in ("/tiers/big", "/elsewhere"):
        assert explained(path) == applications
    assert explained("/tiers/own") == {**applications, "seconds": 3}
    shown = call("limits", "explain", "/own", "--app", app).out
    assert "lease       0.5 s, share 0.1; reserved units count as used" in shown
    assert "lease       2 s, share 0.1" in call("limits", "peek", "default", WHO, "--app", app).out


def test_a_key_is_looked_at_by_its_value_and_never_shown(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """It is hashed as the middleware does it, and as logs show it."""
    settings = {"path": "/a", "limits": "2/h", "by": "header:X-API-Key", "name": "keyed"}
    app = f"{module(f'SETTINGS = dict(rate_limits=[{settings!r}], default_limit=None)')}:SETTINGS"
    words = ("limits", "--json", "--app", app)
    by_value = call(words[0], "peek", "keyed", "header.x-api-key=sesame", *words[1:])
    assert "sesame" not in by_value.out
    (rule,) = by_value.data["rules"]
    header = ("-H", "X-API-Key: sesame")
    (asked,) = call(words[0], "explain", "/a", *header, *words[1:]).data["rules"]
    assert asked["identifier"] == rule["identifier"]
    by_hash = call(words[0], "peek", "keyed", rule["identifier"], *words[1:])
    assert by_hash.data["rules"][0]["keys"] == rule["keys"]


LOGINS = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from upstash_middleware import RateLimitRule, client_ip, combine, form, hashed, json_field
from upstash_middleware.starlette import RateLimitMiddleware


async def page(request):
    return PlainTextResponse("page")


app = Starlette(routes=[Route("/{rest:path}", page, methods=["POST"])])
app.add_middleware(
    RateLimitMiddleware,
    deadline=20,
    default_limit=None,
    rate_limits=[
        RateLimitRule("/form", "1/h", name="form", by=form("name")),
        RateLimitRule("/key", "1/h", name="key", by="header:X-API-Key"),
        RateLimitRule("/json", "1/h", name="json", by=json_field("user.name", normalise=str.upper)),
        RateLimitRule("/pair", "1/h", name="pair", by=combine(form("name"), client_ip())),
        RateLimitRule("/hashed", "1/h", name="hashed", by=hashed(lambda request: "ada")),
    ],
)
"""


@pytest.mark.parametrize(
    ("rule", "sent", "who"),
    [
        ("form", {"data": {"name": " Ada"}}, "form.name=ADA "),
        ("form", {"data": {"name": " Ada"}}, "Ada"),
        ("key", {"headers": {"X-API-Key": "Sesame"}}, "Sesame"),
        ("json", {"json": {"user": {"name": "Ada"}}}, "json.user.name=ada"),
        ("hashed", {}, "id=ada"),
        ("pair", {"data": {"name": "Ada"}}, f"form.name=ada&ip={WHO}"),
    ],
)
def test_an_account_is_unlocked_by_its_name_in_plain_text(
    call: Call,
    module: Callable[[str], str],
    upstash: LocalUpstash,
    rule: str,
    sent: dict[str, Any],
    who: str,
) -> None:
    """However the name is written, as for requests."""
    name = module(LOGINS)
    with TestClient(importlib.import_module(name).app, client=(WHO, 1)) as client:
        assert [client.post(f"/{rule}", **sent).status_code for _ in range(2)] == [200, 429]
        assert call("limits", "peek", rule, who, "--app", name).code == 1
        assert call("limits", "reset", rule, who, "--app", name).code == 0
        assert call("limits", "peek", rule, who, "--app", name).code == 0


@pytest.mark.parametrize(
    ("rule", "who", "kinds"),
    [
        ("pair", "form.name=ada", "form.name=…&ip=…"),
        ("pair", "name=ada", "form.name=…&ip=…"),
        ("pair", WHO, "form.name=…&ip=…"),
        ("pair", "ada", "form.name=…&ip=…"),
        ("form", "nonsense=ada", "form.name=…"),
        ("form", WHO, "form.name=…"),
        ("key", "user=ada", "header.x-api-key=… or ip=…"),
    ],
)
@pytest.mark.parametrize("command", ["peek", "reset"])
def test_an_identifier_that_a_rule_never_counts_by_is_refused(
    call: Call,
    module: Callable[[str], str],
    upstash: LocalUpstash,
    command: str,
    rule: str,
    who: str,
    kinds: str,
) -> None:
    done = call("limits", command, rule, who, "--app", module(LOGINS))
    assert (done.code, done.out) == (2, "")
    assert f"{who!r}: {rule!r} identifies clients by {kinds}" in " ".join(done.err.split())


def test_explain_takes_the_body_that_rules_count_by(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    app = module(LOGINS)
    with TestClient(importlib.import_module(app).app) as client:
        client.post("/form", data={"name": "ada"})
        client.post("/json", json={"user": {"name": "ada"}})
    words = ("limits", "explain", "--app", app)
    as_json = ("-H", "Content-Type: application/json")
    for path, more, code in (
        ("/form", ("--data", "name=Ada"), 1),
        ("/form", ("-d", "name=grace"), 0),
        ("/json", ("-d", '{"user": {"name": "Ada"}}', *as_json), 1),
        ("/json", ("-d", '{"user": {"name": "grace"}}', *as_json), 0),
    ):
        assert call(*words, path, *more).code == code, more


@pytest.mark.parametrize("command", [("peek", "tiers", WHO), ("top", "tiers")])
def test_limits_that_are_a_function_are_said_to_need_a_request(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash, command: tuple[str, ...]
) -> None:
    done = call("limits", *command, "--app", f"{module(LEASES)}:S")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "the limits of 'tiers' are a function, and only a request tells which apply" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("peek", "genarate", WHO), "no rule with limits of this package is called 'genarate'"),
        (("peek", "generate", "user="), "write KIND=VALUE"),
        (("explain", "nowhere"), "give a path such as '/products/7', or a whole URL"),
        (("explain", "/a", "-H", "nothing"), "write 'Name: value'"),
    ],
)
def test_words_that_mean_nothing_are_an_exit_code_of_2(
    call: Call, shop: str, upstash: LocalUpstash, words: tuple[str, ...], says: str
) -> None:
    """The message says what would be right, in JSON too."""
    told = call("limits", *words, "--app", shop)
    assert (told.code, told.out) == (2, "")
    assert says in told.err
    error: dict[str, Any] = call("limits", *words, "--app", shop, "--json").data["error"]
    assert (error["kind"], says in error["message"]) == ("usage", True)


def test_a_handler_that_is_exempt_is_said_to_be_so(call: Call, upstash: LocalUpstash) -> None:
    """No limit counts its requests, whatever the rules say."""
    app = Flask("shop", static_folder=None)
    app.add_url_rule("/health", "health", exempt(lambda: "well"))
    app.add_url_rule("/<name>", "other", lambda name: name)
    UpstashMiddleware(app, default_limit="1/s")
    told = call("limits", "explain", "/health", application=app)
    assert (told.code, "the handler of /health is exempt" in told.out) == (0, True)
    assert call("limits", "explain", "/other", "--json", application=app).data["limited"]


def test_what_only_a_framework_s_request_tells_is_noted(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """The address counts in its place, as it does where the function fails on a server."""
    name = module("""
from upstash_middleware import CacheRule, RateLimitRule

def user(request):
    return request.native["user"]

S = {
    "rate_limits": [RateLimitRule("/a", "1/s", by=user)],
    "default_limit": None,
    "cache": [CacheRule("/a", ttl=1, user=user)],
}
""")
    told = call("limits", "explain", "/a", "--peer", WHO, "--app", f"{name}:S", "--json").data
    assert [one["identifier"] for one in told["rules"]] == [f"ip={WHO}"]
    assert told["notes"] == [
        "rate_limits[0].by raised TypeError: 'NoneType' object is not subscriptable"
    ]
    page = call("cache", "explain", "http://h/a", "--app", f"{name}:S")
    assert (page.code, "a function of the rule raised TypeError" in page.out) == (1, True)


def test_an_explanation_names_the_limits_of_a_handler_that_it_does_not_include(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    name = module("""
from flask import Flask
from upstash_middleware.flask import UpstashMiddleware, limit

def create_app():
    app = Flask("shop")
    UpstashMiddleware(app, default_limit="9/s")
    app.get("/a")(limit("1/s", name="own")(lambda: "a"))
    return app
""")
    told = call("limits", "explain", "/a", "--app", f"{name}:create_app()", "--json").data
    assert [one["rule"] for one in told["rules"]] == ["default"]
    (note,) = told["notes"]
    assert note.startswith("the handler of /a also has the limits 'own', which are not included")
    failed = call("limits", "list", "--app", name)
    assert f"add the name, as in '{name}:create_app()'" in failed.err


def test_a_request_that_no_rule_limits_is_said_to_be_so(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """It is allowed, and limited by nothing."""
    rules = "dict(rate_limits=[dict(path='/a', limits='1/s')], default_limit=None)"
    told = call("limits", "explain", "/b", "--app", f"{module(f'S = {rules}')}:S", "--json")
    assert (told.code, told.data) == (
        0,
        {"limited": False, "allowed": True, "rules": [], "notes": []},
    )


@pytest.mark.parametrize("url", ["/shop/api/generate", "https://x.example/shop/api/generate"])
def test_explain_takes_the_prefix_that_the_application_is_mounted_under(
    call: Call, shop: str, upstash: LocalUpstash, url: str
) -> None:
    """A rule's path is written without it."""
    words = ("limits", "explain", url, "-X", "POST", "--app", shop, "--json", "--peer", WHO)
    rules = call(*words, "--root-path", "/shop").data["rules"]
    assert [rule["rule"] for rule in rules] == ["generate"]
    assert [rule["rule"] for rule in call(*words).data["rules"]] == ["default"]
    wrong = call(*words, "--root-path", "/other")
    assert (wrong.code, "does not begin with it" in wrong.out) == (2, True)
