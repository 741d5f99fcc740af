"""Platforms: where each puts the client's address, how it is recognised, and who can forge it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from examples.platforms.aws_lambda import events
from upstash_middleware.core.identify import (
    PLATFORMS,
    Identifier,
    address_advice,
    application_address,
    client_ip,
    detected_platform,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import Headers, HTTPRequest
from upstash_middleware.settings import settings_from

CLIENT, FORGED = "203.0.113.7", "1.2.3.4"

Fields = list[tuple[str, str]]

FRONTS: dict[str, tuple[str, Fields, Fields]] = {
    # The connection's address; the fields of an honest request; those of a client that has sent
    # FORGED in each of them.
    "vercel": (
        "127.0.0.1",
        [("x-forwarded-for", CLIENT), ("x-real-ip", CLIENT), ("x-vercel-forwarded-for", CLIENT)],
        [("x-forwarded-for", CLIENT), ("x-real-ip", CLIENT), ("cf-connecting-ip", FORGED)],
    ),
    "fly": (
        "172.16.0.2",
        [("fly-client-ip", CLIENT), ("x-forwarded-for", f"{CLIENT}, 66.241.124.9")],
        [("fly-client-ip", CLIENT), ("x-forwarded-for", f"{FORGED}, {CLIENT}, 66.241.124.9")],
    ),
    "aws": (
        "10.0.3.4",
        [("x-forwarded-for", CLIENT), ("x-forwarded-port", "443")],
        [("x-forwarded-for", f"{FORGED}, {CLIENT}"), ("x-real-ip", FORGED)],
    ),
    "azure-app-service": (
        "169.254.129.1",
        [("x-forwarded-for", f"{CLIENT}:50123"), ("x-client-ip", CLIENT)],
        [("x-forwarded-for", f"{FORGED}, {CLIENT}:50123"), ("x-real-ip", FORGED)],
    ),
    "cloudflare": (
        "172.64.0.9",
        [("cf-connecting-ip", CLIENT), ("x-forwarded-for", CLIENT)],
        [("cf-connecting-ip", CLIENT), ("x-forwarded-for", f"{FORGED},{CLIENT}")],
    ),
    "digitalocean": (
        "10.244.0.9",
        [("do-connecting-ip", CLIENT), ("x-forwarded-for", f"{CLIENT},172.70.1.2")],
        [("do-connecting-ip", CLIENT), ("x-forwarded-for", f"{FORGED},{CLIENT},172.70.1.2")],
    ),
    "google-cloud-run": (
        "169.254.8.1",
        [("x-forwarded-for", CLIENT), ("forwarded", f'for="{CLIENT}";proto=https')],
        [("x-forwarded-for", f"{FORGED},{CLIENT}"), ("forwarded", f"for={FORGED}")],
    ),
    "google-cloud-load-balancer": (
        "169.254.8.1",
        [("x-forwarded-for", f"{CLIENT},34.120.1.2")],
        [("x-forwarded-for", f"{FORGED},{CLIENT},34.120.1.2")],
    ),
    "heroku": (
        "10.1.2.3",
        [("x-forwarded-for", CLIENT), ("x-forwarded-port", "443"), ("via", "1.1 vegur")],
        [("x-forwarded-for", f"{FORGED},{CLIENT}"), ("x-real-ip", FORGED)],
    ),
    "koyeb": (
        "10.20.0.3",
        [("x-forwarded-for", CLIENT), ("x-forwarded-host", "shop.koyeb.app")],
        [("x-forwarded-for", f"{FORGED}, {CLIENT}"), ("x-real-ip", FORGED)],
    ),
    "railway": (
        "100.64.0.3",
        [("x-real-ip", CLIENT), ("x-forwarded-proto", "https"), ("x-railway-edge", "edge")],
        [("x-real-ip", CLIENT), ("x-forwarded-for", FORGED)],
    ),
    "render": (
        "10.202.1.3",
        [("cf-connecting-ip", CLIENT), ("x-forwarded-for", f"{CLIENT}, 172.71.1.2, 10.0.1.2")],
        [("cf-connecting-ip", CLIENT), ("x-forwarded-for", f"{FORGED}, {CLIENT}, 172.71.1.2")],
    ),
}


def through(platform: str, *, forged: bool = False) -> HTTPRequest:
    """Return a request as it arrives through the front of a platform."""
    peer, honest, lying = FRONTS[platform]
    fields = lying if forged else honest
    raw = [(name.encode(), value.encode()) for name, value in fields]
    return HTTPRequest("GET", "/", Headers(raw), host="shop.example", peer=peer)


def test_each_preset_but_the_event_of_lambda_has_its_fields_here() -> None:
    assert set(FRONTS) | {"aws-lambda"} == set(PLATFORMS)


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize("platform", FRONTS)
def test_the_client_is_whom_the_platform_names_whatever_it_has_sent(
    platform: str, forged: bool
) -> None:
    found = client_ip(platform=platform)(through(platform, forged=forged))
    assert found == Identifier("ip", CLIENT)


@pytest.mark.parametrize("preset", PLATFORMS.values(), ids=PLATFORMS)
def test_each_preset_says_what_its_platform_documents_and_where(
    preset: Any,
) -> None:
    assert preset.says
    assert preset.documentation.startswith("https://")
    assert not preset.automatic or preset.variables


# ------------------------------------------------------------------------------------------------
# Detection.

DEPLOYED = {
    "vercel": {"VERCEL": "1", "VERCEL_ENV": "production", "VERCEL_REGION": "fra1"},
    "fly": {"FLY_APP_NAME": "shop", "FLY_MACHINE_ID": "148e21eb"},
    "aws-lambda": {"AWS_LAMBDA_FUNCTION_NAME": "shop"},
    "azure-app-service": {"WEBSITE_SITE_NAME": "shop", "WEBSITE_INSTANCE_ID": "0a1b"},
    "google-cloud-run": {"K_SERVICE": "shop", "K_REVISION": "shop-00001"},
    "heroku": {"DYNO": "web.1"},
    "koyeb": {"KOYEB_APP_NAME": "shop"},
    "railway": {"RAILWAY_PROJECT_ID": "c7d0", "RAILWAY_ENVIRONMENT_NAME": "production"},
    "render": {"RENDER": "true"},
}
AUTOMATIC = {"vercel", "fly", "aws-lambda"}


@pytest.mark.parametrize("platform", DEPLOYED)
def test_a_platform_is_recognised_by_its_variables(platform: str) -> None:
    """And its preset used, where the platform says that its own address replaces what was sent."""
    settings = settings_from({"default_limit": "1/s"}, DEPLOYED[platform])
    assert settings.platform == platform
    found, _ = application_address(settings.client_ip, settings.platform)
    own = client_ip(platform=platform)
    assert (found == own) is (platform in AUTOMATIC)
    if platform not in AUTOMATIC:
        assert found == client_ip()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"VERCEL": "1", "VERCEL_ENV": "development", "VERCEL_REGION": "dev1"},
        {"VERCEL": "1", "VERCEL_ENV": "production", "VERCEL_REGION": ""},
        {"VERCEL": "1"},
        {"FLY_APP_NAME": "shop"},
        {"WEBSITE_SITE_NAME": "shop"},
        {"RENDER": ""},
    ],
)
def test_what_developers_machines_set_is_no_platform(environ: dict[str, str]) -> None:
    """``vercel dev`` and ``vercel env pull`` write some of Vercel's variables."""
    assert detected_platform(environ) is None


def test_vercels_functions_are_not_taken_for_lambdas() -> None:
    """Vercel runs on Lambda, and its functions are called without the event."""
    assert detected_platform(DEPLOYED["aws-lambda"] | DEPLOYED["vercel"]) == "vercel"


@pytest.mark.parametrize("given", [0, 1, "10.0.0.0/8", "heroku", client_ip()])
def test_what_is_configured_is_not_overruled(given: Any) -> None:
    settings = settings_from({"default_limit": "1/s", "client_ip": given}, DEPLOYED["fly"])
    assert settings.platform is None
    assert application_address(settings.client_ip, None) == (settings.client_ip, False)


@pytest.mark.parametrize("platform", [name for name in DEPLOYED if name not in AUTOMATIC])
def test_elsewhere_the_advice_names_the_platforms_value_and_its_documentation(
    platform: str,
) -> None:
    for forged in (False, True):
        advice = str(address_advice(through(platform, forged=forged), platform))
        assert f"set client_ip={platform!r}" in advice
        assert PLATFORMS[platform].documentation in advice
        balanced = "'google-cloud-load-balancer' behind a load balancer" in advice
        assert balanced is (platform == "google-cloud-run")


# ------------------------------------------------------------------------------------------------
# AWS Lambda: the event, and no header field.

WRAPPERS = ("aws.event", "apig_wsgi.full_event", "serverless.event", "awsgi.event")
GATEWAYS = (events.rest_api, events.edge_rest_api, events.http_api, events.function_url)


def called_with(event: events.Event, key: str = "aws.event", *, attribute: str = "") -> HTTPRequest:
    """Return a request as an application gets it for an event, maybe in a framework's object."""
    forwarded = {name.lower(): value for name, value in event["headers"].items()}
    raw = [(name.encode(), value.encode()) for name, value in forwarded.items()]
    around: Any = {key: event}
    native = SimpleNamespace(**{attribute: around}) if attribute else around
    peer = forwarded["x-forwarded-for"]
    return HTTPRequest("GET", "/", Headers(raw), host=forwarded["host"], peer=peer, native=native)


@pytest.mark.parametrize("key", WRAPPERS)
@pytest.mark.parametrize("attribute", ["", "scope", "META"])
@pytest.mark.parametrize("front", GATEWAYS)
def test_on_lambda_the_address_is_the_events(front: Any, key: str, attribute: str) -> None:
    for sent in ("", FORGED, f"{FORGED}, 5.6.7.8"):
        request = called_with(front("/", sent), key, attribute=attribute)
        assert client_ip(platform="aws-lambda")(request) == Identifier("ip", events.SOURCE)
        assert address_advice(request, "aws-lambda") is None


SHARED = Identifier("peer", "(no source address)")


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"requestContext": None},
        {"requestContext": ["x"]},
        {"requestContext": "http"},
        {"requestContext": {"http": ["sourceIp"], "identity": 7}},
        {"requestContext": {"http": {"sourceIp": ["203.0.113.7"]}}},
        {"requestContext": {"identity": {"sourceIp": "test-invoke-source-ip"}}},
    ],
)
def test_requests_of_any_other_event_share_one_quota(event: Any) -> None:
    """They are not without a limit, and none of them fails."""
    fields = Headers.of(x_forwarded_for=FORGED)
    request = HTTPRequest("GET", "/", fields, peer=FORGED, native={"aws.event": event})
    assert client_ip(platform="aws-lambda")(request) == SHARED
    if "sourceIp" not in str(event):
        assert "set client_ip='aws'" in str(address_advice(request, "aws-lambda"))
        assert client_ip(platform="aws")(request) == Identifier("ip", FORGED)


def test_a_load_balancers_event_has_no_address_and_the_advice_says_what_to_set() -> None:
    request = called_with(events.load_balancer("/", FORGED))
    assert client_ip(platform="aws-lambda")(request) == SHARED
    advice = str(address_advice(request, "aws-lambda"))
    assert "all such requests share one quota" in advice
    assert "set client_ip='aws'" in advice
    assert client_ip(platform="aws")(request) == Identifier("ip", events.SOURCE)


def test_without_the_event_the_connection_counts_and_the_advice_says_so() -> None:
    """The Lambda Web Adapter passes requests on by HTTP."""
    request = HTTPRequest("GET", "/", peer="127.0.0.1")
    assert client_ip(platform="aws-lambda")(request) == Identifier("ip", "127.0.0.1")
    assert "called without the event" in str(address_advice(request, "aws-lambda"))


@pytest.mark.parametrize("front", GATEWAYS)
def test_the_load_balancers_preset_is_refused_for_other_events(front: Any) -> None:
    """A function URL hands on what the client has sent; the edge appends CloudFront's address."""
    with pytest.raises(ConfigurationError, match="set client_ip='aws-lambda'"):
        client_ip(platform="aws")(called_with(front("/", FORGED)))


def test_it_is_refused_by_the_host_of_a_function_url_where_the_event_is_not_known() -> None:
    host = "id.lambda-url.eu-central-1.on.aws"
    fields = Headers.of(x_forwarded_for=FORGED)
    with pytest.raises(ConfigurationError, match="function URL"):
        client_ip(platform="aws")(HTTPRequest("GET", "/", fields, host=host, peer="127.0.0.1"))
    forged = HTTPRequest("GET", "/", fields, host=host, peer="10.0.3.4")
    assert client_ip(platform="aws")(forged) == Identifier("ip", FORGED)


def test_proxy_fix_has_done_it_already() -> None:
    """Werkzeug's ProxyFix leaves what was there before in the environ."""
    fixed = {"werkzeug.proxy_fix.orig": {"REMOTE_ADDR": "10.0.0.9"}, "REMOTE_ADDR": "10.1.2.3"}
    fields = Headers.of(x_forwarded_for="203.0.113.7")
    request = HTTPRequest("GET", "/", fields, peer="10.1.2.3", native=fixed)
    for platform in (None, "heroku"):
        assert address_advice(request, platform) is None
