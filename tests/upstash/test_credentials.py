"""Where credentials come from, and what is said when they are missing or wrong."""

from __future__ import annotations

import pytest
import upstash_redis
import upstash_redis.asyncio

from upstash_middleware.errors import ConfigurationError, MissingCredentials
from upstash_middleware.upstash import Credentials

URL = "https://eu1-bold-cat-12345.upstash.io"
TOKEN = "AX0mASQgN2M5ODc0Y2ItNGIwYi00"
UPSTASH = {"UPSTASH_REDIS_REST_URL": URL, "UPSTASH_REDIS_REST_TOKEN": TOKEN}
VERCEL = {"KV_REST_API_URL": "https://kv.example", "KV_REST_API_TOKEN": "kv-token"}


def test_the_token_is_not_in_the_repr():
    assert TOKEN not in repr(Credentials(URL, TOKEN))
    assert URL in repr(Credentials(URL, TOKEN))


def test_given_values_come_before_a_client_and_a_client_before_the_environment():
    redis = upstash_redis.Redis("https://redis.example", "redis-token")
    assert Credentials.find(url=URL, token=TOKEN, redis=redis, environ=VERCEL).url == URL
    found = Credentials.find(redis=redis, environ=VERCEL)
    assert found == Credentials("https://redis.example", "redis-token")


def test_upstashs_variables_come_before_vercels():
    assert Credentials.find(environ=UPSTASH | VERCEL) == Credentials(URL, TOKEN)
    assert Credentials.find(environ=VERCEL) == Credentials("https://kv.example", "kv-token")


def test_the_environment_can_turn_telemetry_off():
    assert Credentials.find(environ=UPSTASH).telemetry
    off = UPSTASH | {"UPSTASH_DISABLE_TELEMETRY": "1"}
    assert not Credentials.find(environ=off).telemetry
    assert not Credentials.find(url=URL, token=TOKEN, environ=off).telemetry


@pytest.mark.parametrize("kind", [upstash_redis.Redis, upstash_redis.asyncio.Redis])
@pytest.mark.parametrize("telemetry", [True, False])
def test_an_applications_own_client_gives_its_address_token_and_telemetry_choice(kind, telemetry):
    redis = kind(URL, TOKEN, allow_telemetry=telemetry)
    assert Credentials.find(redis=redis, environ={}) == Credentials(URL, TOKEN, telemetry)


def test_another_kind_of_client_is_refused_by_its_name():
    with pytest.raises(ConfigurationError, match=r"builtins\.dict.*upstash_redis\.Redis"):
        Credentials.find(redis={}, environ={})


def test_nothing_at_all_says_which_variables_to_set():
    with pytest.raises(MissingCredentials) as raised:
        Credentials.find(environ={})
    for name in (*UPSTASH, *VERCEL):
        assert name in str(raised.value)


@pytest.mark.parametrize("name", [*UPSTASH, *VERCEL])
def test_half_of_a_pair_says_what_the_other_half_is(name):
    pair = UPSTASH if name in UPSTASH else VERCEL
    (other,) = set(pair) - {name}
    with pytest.raises(MissingCredentials, match=f"{name} is set.*{other} is not"):
        Credentials.find(environ={name: pair[name]})


@pytest.mark.parametrize(("given", "lacking"), [("url", "token"), ("token", "url")])
def test_one_given_value_alone_is_not_mixed_with_the_environments(given, lacking):
    with pytest.raises(MissingCredentials, match=f"{given} is set, but {lacking} is not"):
        Credentials.find(**{given: {"url": URL, "token": TOKEN}[given]}, environ=UPSTASH)


@pytest.mark.parametrize("stray", ['"{}"', "'{}'", " {} ", "{}\n", '"{}"\r\n'])
def test_what_copying_leaves_around_a_value_is_taken_off(stray):
    assert Credentials(stray.format(URL), stray.format(TOKEN)) == Credentials(URL, TOKEN)


def test_a_slash_at_the_end_does_not_matter_and_a_path_stays():
    assert Credentials(f"{URL}/", TOKEN).url == URL
    assert Credentials(f"{URL}/redis/", TOKEN).url == f"{URL}/redis"


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_redis_own_address_is_refused_with_what_to_give_and_without_its_password(scheme):
    with pytest.raises(ConfigurationError, match="https://") as raised:
        Credentials(f"{scheme}://default:{TOKEN}@bold-cat.upstash.io:6379", TOKEN)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "bold-cat.upstash.io",
        "ftp://bold-cat.upstash.io",
        "https://",
        "",
        "https://[::1",
        "https://host:port",
        f"https://user:{TOKEN}@host",
        f"https://host/?_token={TOKEN}",
        f"https://host/#{TOKEN}",
    ],
)
def test_what_is_no_rest_url_is_refused_and_no_secret_is_shown(url):
    with pytest.raises(ConfigurationError, match="url is") as raised:
        Credentials(url, TOKEN)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "tökén", "\x7f"])
def test_what_is_no_token_is_refused_and_not_shown(token):
    with pytest.raises(ConfigurationError, match="token has") as raised:
        Credentials(URL, token)
    assert token not in str(raised.value)


def test_an_empty_token_is_missing():
    with pytest.raises(MissingCredentials):
        Credentials(URL, ' "" ')


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8079", True),
        ("http://127.0.0.1:8079", True),
        ("http://[::1]:8079", True),
        ("http://redis:80", False),
        (URL, False),
    ],
)
def test_this_machine_is_known_by_its_loopback_names(url, local):
    assert Credentials(url, TOKEN).local is local
