"""Identifiers that a client sends along, several of them together, and how they are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.core.identify import (
    Identifier,
    combine,
    cookie,
    extract,
    first_of,
    hashed,
    header,
    jwt_claim,
    key_text,
    query,
)
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import Headers, HTTPRequest


class Unused:
    """No extractor asks Upstash."""

    def execute(self, pipeline: Any) -> Any:
        raise AssertionError(pipeline)


def extracted(extractor: Any, request: HTTPRequest) -> Identifier | None:
    return run(extract(extractor, request), Unused())


def text(identifier: Identifier) -> str:
    return key_text(identifier, lambda: b"key")


def asked(query: str = "", **fields: str) -> HTTPRequest:
    return HTTPRequest("GET", "/", Headers.of(**fields), query=query)


def test_headers_cookies_and_parameters_are_secret_identifiers() -> None:
    """Their values may be credentials."""
    assert header("X-API-Key")(asked(x_api_key=" k1 ")) == Identifier(
        "header.x-api-key", "k1", True
    )
    assert cookie("sid")(asked(cookie='a=b; sid="k2"; c')) == Identifier("cookie.sid", "k2", True)
    assert query("key")(asked("a=1&key=k%203")) == Identifier("query.key", "k 3", True)


def test_a_request_with_several_values_shares_one_quota_with_all_others_like_it() -> None:
    """Frameworks differ in which of them they read."""
    several = {
        query("key")(asked("key=1&k%65y=2")),
        query("key")(asked("key=3&key=4")),
    }
    assert several == {Identifier("query.key", "(several values)")}
    for cookies in ("sid=x; sid=k", 'sid="\\153"', 'a="; sid=x; b="; sid=k'):
        assert cookie("sid")(asked(cookie=cookies)) == Identifier("cookie.sid", "(several values)")
    assert query("key")(asked("key=1&key=1")) == Identifier("query.key", "1", True)


def test_one_credential_is_one_identity_however_its_scheme_is_written() -> None:
    """RFC 9110 §11.1."""
    sent = ("Bearer k", "bearer  k", "BEARER k x", " Bearer k ")
    found = {header("Authorization")(asked(authorization=value)) for value in sent}
    assert found == {Identifier("header.authorization", "bearer k", True)}


def verified(token: str) -> dict[str, Any]:
    """Verify a token as a library does: the claims, or an error."""
    claims: dict[str, dict[str, Any]] = {
        "7.signed": {"sub": "ada", "id": 7},
        "8.signed": {"sub": ""},
    }
    return claims[token]


async def verified_later(token: str) -> dict[str, Any]:
    return verified(token)


@pytest.mark.parametrize("verify", [verified, verified_later])
def test_the_claim_of_a_token_that_verifies_is_a_secret_identifier(verify: Any) -> None:
    """RFC 6750 §2.1; a field of one's own may contain the token alone."""
    subject = jwt_claim("sub", verify)
    for sent in ("Bearer 7.signed", "bearer  7.signed", "7.signed"):
        assert extracted(subject, asked(authorization=sent)) == Identifier("jwt.sub", "ada", True)
    own = jwt_claim("id", verify, header="X-Token")
    assert extracted(own, asked(x_token="7.signed")) == Identifier("jwt.id", "7", True)


def test_without_a_token_that_verifies_and_has_the_claim_there_is_no_identifier() -> None:
    for sent in ("", "Bearer", "Bearer forged", "Basic 7.signed", "Bearer 8.signed"):
        assert extracted(jwt_claim("sub", verified), asked(authorization=sent)) is None
    assert extracted(jwt_claim("sub", verified), asked()) is None
    assert extracted(jwt_claim("aud", verified), asked(authorization="7.signed")) is None


def test_requests_with_several_tokens_share_one_quota() -> None:
    """Whichever of them the application reads."""
    sent = [(b"authorization", b"Bearer 7.signed"), (b"authorization", b"Bearer forged")]
    request = HTTPRequest("GET", "/", Headers(sent))
    found = extracted(jwt_claim("sub", verified), request)
    assert found == Identifier("jwt.sub", "(several values)")


def test_what_is_absent_or_empty_is_nothing() -> None:
    """So that the next extractor, or the peer's address, counts."""
    for extractor in (header("x-key"), cookie("key"), query("key")):
        assert extractor(asked()) is None
        assert extractor(asked("key=", x_key="", cookie="key=")) is None


def test_combined_identifiers_need_all_and_never_read_the_same() -> None:
    """`a` with `bc` is not `ab` with `c`."""
    both = combine(lambda request: request.method, header("x-key"))
    assert extracted(both, asked()) is None
    values = set()
    for first, second in (("a", "bc"), ("ab", "c"), ("a&2.b", "c"), ("a", "b&1.c")):
        found = extracted(combine(lambda _, v=first: v, lambda _, v=second: v), asked())
        assert found is not None
        values.add(found.value)
    assert len(values) == 4
    secret = extracted(both, asked(x_key="k"))
    assert secret is not None
    assert secret.secret


def test_the_first_that_is_found_counts() -> None:
    """And functions of the application's may be among them, async too."""

    async def later(request: HTTPRequest) -> int | None:
        return 7 if request.query else None

    either = first_of(header("x-key"), later)
    assert extracted(either, asked(x_key="k")) == Identifier("header.x-key", "k", True)
    assert extracted(either, asked("x=1")) == Identifier("id", "7")
    assert extracted(either, asked()) is None


def test_hashed_makes_secret_what_a_function_finds() -> None:
    """For credentials and personal data that no extractor of ours has read."""
    assert extracted(hashed(lambda request: "mail@x.example"), asked()) == Identifier(
        "id", "mail@x.example", secret=True
    )
    assert extracted(hashed(lambda request: None), asked()) is None


def test_what_is_no_extractor_is_refused() -> None:
    """At construction."""
    with pytest.raises(ConfigurationError, match="a function that verifies a token"):
        jwt_claim("sub", "key")  # type: ignore[arg-type]
    for make in (lambda: combine(), lambda: first_of("clientip"), lambda: header("")):  # noqa: PLW0108
        with pytest.raises(ConfigurationError):
            make()


def test_secrets_and_long_values_are_hashed_under_the_key() -> None:
    """The same in every process that shares the key, unlike under another."""
    secret = Identifier("header.x", "k1", secret=True)
    assert text(secret) == text(secret)
    assert text(secret) != key_text(secret, lambda: b"other")
    assert "k1" not in text(secret)
    assert text(Identifier("id", "x" * 128)) == "id=" + "x" * 128
    assert text(Identifier("id", "x" * 129)).startswith("id=#")
    assert len(text(Identifier("id", "x" * 1_000_000))) < 50


awkward = st.text(st.sampled_from("ab=#%:&.{\x00é\ud800"), max_size=6)
identifiers = st.builds(
    Identifier,
    st.one_of(awkward, st.text(max_size=80)),
    st.one_of(awkward, st.text(max_size=200)),
    st.booleans(),
)


@given(identifiers, identifiers)
def test_no_two_identifiers_are_written_alike(one: Identifier, other: Identifier) -> None:
    """Text in keys is bounded, plain ASCII, holds no separator, and tells whose it is apart.

    Whether the value is a secret says how it is written, not whose it is.
    """
    written = text(one)
    assert len(written) <= 193
    assert written.isascii()
    assert written.isprintable()
    assert not set(written) & set(":{} \n")
    if (one.kind, one.value) != (other.kind, other.value):
        assert written != text(other)
