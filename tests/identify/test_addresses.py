"""The client's address: behind no proxy, behind trusted ones, and where somebody lies about it."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.core.identify import (
    PLATFORMS,
    Identifier,
    address_setting,
    client_ip,
    extract,
    identity_list,
    key_text,
    parse_address,
    peer_address,
)
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import Headers, HTTPRequest

if TYPE_CHECKING:
    import random


class NoUpstash:
    """No extractor asks it."""

    def execute(self, pipeline: Any) -> Any:
        raise AssertionError(pipeline)


def request(
    peer: str | None = "10.0.0.9", *forwarded: str, name: str = "x-forwarded-for"
) -> HTTPRequest:
    raw = [(name.encode(), value.encode("latin-1")) for value in forwarded]
    return HTTPRequest("GET", "/", Headers(raw), peer=peer)


def found(extractor: Any, asked: HTTPRequest) -> str | None:
    identifier = extractor(asked)
    return None if identifier is None else identifier.value


def test_by_itself_only_the_connection_counts() -> None:
    """Whoever writes X-Forwarded-For himself stays who he is (fastapi-limiter#10, slowapi#255)."""
    assert found(client_ip(), request("203.0.113.7", "198.51.100.1")) == "203.0.113.7"


@pytest.mark.parametrize(
    ("hops", "forwarded", "client"),
    [
        (1, ["198.51.100.1"], "198.51.100.1"),
        (1, ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        (1, ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        (2, ["6.6.6.6, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        (2, ["198.51.100.1"], "10.0.0.9"),
        (1, [], "10.0.0.9"),
        (1, [""], "10.0.0.9"),
        (1, ["6.6.6.6, unknown"], "10.0.0.9"),
        (1, ["6.6.6.6, _hidden"], "10.0.0.9"),
        (2, ["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        (1, ["198.51.100.1:4711"], "198.51.100.1"),
        (1, ["[2001:db8:0:1::5]:4711"], "2001:db8:0:1::/64"),
        (1, ['"[2001:db8:0:1::5]"'], "2001:db8:0:1::/64"),
        (1, ["::ffff:198.51.100.1"], "198.51.100.1"),
        (1, ["fe80::1%eth0"], "fe80::/64"),
        (1, ["999.1.1.1"], "10.0.0.9"),
        (1, ["1" * 65], "10.0.0.9"),
    ],
)
def test_hops_are_counted_from_the_right(hops: int, forwarded: list[str], client: str) -> None:
    """What stands further left than the proxies wrote is the client's invention."""
    extractor = client_ip(trusted_hops=hops)
    assert found(extractor, request("10.0.0.9", *forwarded)) == client


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.9", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.9", ["6.6.6.6, 198.51.100.1, 10.0.0.3"], "198.51.100.1"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("10.0.0.9", ["10.0.0.4, 10.0.0.3"], "10.0.0.4"),
        ("10.0.0.9", ["6.6.6.6, unknown, 10.0.0.3"], "10.0.0.3"),
        ("::ffff:10.0.0.9", ["198.51.100.1"], "198.51.100.1"),
        (None, ["198.51.100.1, 10.0.0.3"], "198.51.100.1"),
        (None, [], None),
    ],
)
def test_networks_are_walked_from_the_peer(
    peer: str | None, forwarded: list[str], client: str | None
) -> None:
    """The first address that no trusted proxy has is the client's; a stranger's word is nothing."""
    extractor = client_ip(trusted=("10.0.0.0/8", "fd00::/8"))
    assert found(extractor, request(peer, *forwarded)) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('for=6.6.6.6, for="198.51.100.1:80";proto=https;by=10.0.0.1', "198.51.100.1"),
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::/64"),
        ('by=10.0.0.1;for=198.51.100.1;host="a,b;for=6.6.6.6"', "198.51.100.1"),
        ('host="x;for=6.6.6.6";for=198.51.100.1', "198.51.100.1"),
        ('for=198.51.100.1;host="a\\";for=6.6.6.6;x=\\""', "198.51.100.1"),
        ('for="6.6.6.6, for=198.51.100.1', "198.51.100.1"),
        ("for=6.6.6.6;host=x, for = 198.51.100.1", "198.51.100.1"),
        ("for=6.6.6.6, proto=https", "10.0.0.9"),
        ("for=_secret", "10.0.0.9"),
        ("for=unknown", "10.0.0.9"),
        ("", "10.0.0.9"),
    ],
)
def test_forwarded_of_rfc_7239_is_read(value: str, client: str) -> None:
    """RFC 7239 §4 and §6: quoted strings, ports, brackets, obfuscated names, silent hops."""
    extractor = client_ip(trusted_hops=1, header="Forwarded")
    assert found(extractor, request("10.0.0.9", value, name="Forwarded")) == client


def test_ipv6_clients_count_by_their_network() -> None:
    """A /64 is one client (express-rate-limit#502); how much is settable; IPv4 is never merged."""
    first, second = request("2001:db8:1:2:a::1"), request("2001:db8:1:2:b::2")
    assert found(client_ip(), first) == found(client_ip(), second) == "2001:db8:1:2::/64"
    assert found(client_ip(ipv6_prefix=56), first) == "2001:db8:1::/56"
    assert found(client_ip(ipv6_prefix=128), first) == "2001:db8:1:2:a::1"
    addresses = {found(client_ip(), request(f"::ffff:203.0.113.{n}")) for n in range(9)}
    assert len(addresses) == 9


def test_a_peer_that_is_no_address_is_an_identity_of_its_own() -> None:
    """Test clients and some servers give names."""
    assert peer_address(request("testclient")) == Identifier("peer", "testclient")
    assert peer_address(request(None)) is None
    assert peer_address(request("")) is None
    assert peer_address(request("2001:db8::1")) == Identifier("ip", "2001:db8::/64")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trusted": ["10.0.0.1/8"]}, "trusted network '10.0.0.1/8'"),
        ({"trusted": ["proxy"]}, "write for instance '10.0.0.0/8'"),
        ({"trusted": [7]}, "write for instance '10.0.0.0/8'"),
        ({"trusted": "10.0.0.0/8"}, "should be a sequence such as ('10.0.0.0/8',)"),
        ({"trusted": 7}, "should be a sequence such as ('10.0.0.0/8',)"),
        ({"platform": "mars"}, "unknown platform 'mars'; known: vercel,"),
        ({"platform": "vercell"}, "'vercell' (did you mean 'vercel'?); known: vercel,"),
        (
            {"trusted_hops": 1, "platform": "fly"},
            "trusted_hops, trusted and platform exclude each other",
        ),
        ({"trusted_hops": -1}, "trusted_hops=-1 should be from 0 to 32"),
        ({"trusted_hops": "1"}, "trusted_hops='1' should be a whole number"),
        ({"trusted_hops": True}, "trusted_hops=True should be a whole number"),
        ({"trusted_hops": None}, "trusted_hops=None should be a whole number"),
        ({"ipv6_prefix": "64"}, "ipv6_prefix='64' should be a whole number"),
        ({"ipv6_prefix": 0}, "ipv6_prefix=0 from 16 to 128"),
        ({"header": "X-Real-IP"}, "header='X-Real-IP' needs a trusted proxy"),
    ],
)
def test_what_is_wrong_is_said_at_construction(settings: dict[str, Any], words: str) -> None:
    """With what would be right."""
    with pytest.raises(ConfigurationError) as caught:
        client_ip(**settings)
    assert words in str(caught.value)


@given(st.lists(st.text(st.characters(max_codepoint=255)), max_size=4), st.booleans())
def test_no_header_makes_it_fail_or_trust_a_stranger(lines: list[str], forwarded: bool) -> None:
    """Whatever is sent, the answer is an address, and a peer that is not trusted stays itself."""
    name = "forwarded" if forwarded else "x-forwarded-for"
    asked = request("203.0.113.7", *lines, name=name)
    assert found(client_ip(trusted=["10.0.0.0/8"], header=name), asked) == "203.0.113.7"
    assert found(client_ip(trusted_hops=1, header=name), asked)


@given(st.text(max_size=70))
def test_any_text_is_an_address_or_none(text: str) -> None:
    """Nothing else comes of it."""
    address = parse_address(text)
    assert address is None or address.version in {4, 6}


ADDRESSES = st.ip_addresses(v=4).map(str)
NODES = ADDRESSES | st.ip_addresses(v=6, network="2001:db8::/32").map(str)


@given(st.lists(ADDRESSES, min_size=1, max_size=6), st.integers(1, 4), st.booleans(), st.randoms())
def test_of_any_forwarded_addresses_the_one_that_the_outermost_trusted_proxy_saw_counts(
    addresses: list[str], hops: int, ports: bool, chance: random.Random
) -> None:
    """Over however many lines, with ports or without; where there are fewer, nobody is believed."""
    written = [f"{address}:{port}" if ports else address for port, address in enumerate(addresses)]
    cut = chance.randrange(len(written) + 1)
    lines = [", ".join(part) for part in (written[:cut], written[cut:]) if part]
    asked = request("10.0.0.9", *lines)
    assert found(client_ip(trusted_hops=hops), asked) == [*["10.0.0.9"] * hops, *addresses][-hops]


@given(st.lists(NODES, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_forwarded_reads_back(nodes: list[str], ports: bool, quoted: bool) -> None:
    """RFC 7239 §4, §6: IPv6 in brackets and quotes, names in any case, other parameters beside."""
    elements = []
    for node in nodes:
        text = f"[{node}]" if ":" in node else node
        text += ":47011" if ports else ""
        needs = quoted or ":" in text
        elements.append(f'proto=http;For="{text}";by=_x' if needs else f"FOR={text}")
    asked = request("10.0.0.9", ", ".join(elements), name="forwarded")
    one = client_ip(trusted_hops=1, header="forwarded", ipv6_prefix=128)
    assert found(one, asked) == nodes[-1]


@given(st.lists(st.text(st.sampled_from('for=";,[]:.0123456789ab_ \\unkow'), max_size=40)))
def test_what_is_nearly_a_forwarded_field_makes_nothing_fail(lines: list[str]) -> None:
    for name in ("forwarded", "x-forwarded-for"):
        asked = request("10.0.0.9", *lines, name=name)
        assert found(client_ip(trusted=["10.0.0.0/8"], header=name), asked)
        assert found(client_ip(trusted_hops=2, header=name), asked)


@pytest.mark.parametrize("piece", ['"', '\\"', '"\\', ",", ";", 'for="', "for=", "\\"])
def test_a_long_header_is_read_in_time_that_grows_with_it(piece: str) -> None:
    """A hundred thousand characters of whatever a client repeats."""
    asked = request("10.0.0.9", piece * (100_000 // len(piece)), name="forwarded")
    began = time.process_time()
    assert found(client_ip(trusted_hops=1, header="forwarded"), asked)
    assert time.process_time() - began < 2


# ------------------------------------------------------------------------------------------------
# Functions of the application's own as the setting `client_ip`

OWN: list[tuple[Any, Identifier | None]] = [
    ("203.0.113.7", Identifier("ip", "203.0.113.7")),
    (" [2001:db8::5]:4711", Identifier("ip", "2001:db8::/64")),
    (Identifier("ip", "203.0.113.7"), Identifier("ip", "203.0.113.7")),
    (Identifier("ip", "2001:db8::5"), Identifier("ip", "2001:db8::/64")),
    (Identifier("ip", "::ffff:203.0.113.7"), Identifier("ip", "203.0.113.7")),
    (Identifier("ip", "2001:db8::/48"), Identifier("ip", "2001:db8::/48")),
    (Identifier("ip", "203.0.113.7", secret=True), Identifier("ip", "203.0.113.7", secret=True)),
    (Identifier("ip", "unknown"), Identifier("id", "unknown")),
    (Identifier("ip", ""), Identifier("id", "")),
    ("unknown", Identifier("id", "unknown")),
    (Identifier("peer", "a socket"), Identifier("peer", "a socket")),
    (None, None),
]


@pytest.mark.parametrize(("returned", "identifier"), OWN)
def test_what_an_own_function_returns_is_read_as_an_address(
    returned: Any, identifier: Identifier | None
) -> None:
    extractor: Any = address_setting("client_ip", lambda _: returned)
    assert run(extract(extractor, request()), NoUpstash()) == identifier


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ipv6_prefix": 56},
        {"trusted_hops": 2},
        {"trusted_hops": 1, "header": "Forwarded", "ipv6_prefix": 48},
        {"trusted": ("10.0.0.0/8", "fd00::/8")},
        {"trusted": ["10.0.0.0/8"], "header": "X-Real-IP"},
        *({"platform": platform} for platform in PLATFORMS),
        {"platform": "aws", "ipv6_prefix": 56},
        {"platform": "aws-lambda", "ipv6_prefix": 56},
    ],
)
def test_what_is_shown_can_be_pasted(arguments: dict[str, Any]) -> None:
    extractor = client_ip(**arguments)
    assert eval(repr(extractor), {"client_ip": client_ip}) == extractor


@pytest.mark.parametrize("length", [1, 4000])
def test_long_texts_are_not_remembered(length: int) -> None:
    """A client can send many of them, each as long as a header field may be."""
    extractor, own = client_ip(trusted_hops=1), client_ip(platform="cloudflare")
    tracemalloc.start()
    before = None
    try:
        for number in range(1200):
            text = f"{number:05}" + "x" * length
            assert found(extractor, request("203.0.113.7", text)) == "203.0.113.7"
            assert found(own, request(text, text, name="cf-connecting-ip")) is None
            assert peer_address(request(text)) == Identifier("peer", text)
            key_text(Identifier("id", text), bytes)
            if number == 100:
                before = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - (before or 0)
    finally:
        tracemalloc.stop()
    assert grown < 1_500_000


@pytest.mark.parametrize("value", ["unknown", "", "203.0.113.7:80"])
def test_what_is_no_address_is_in_no_list(value: str) -> None:
    """Wherever it comes from: a rule's own ``by`` may say anything."""
    listed = identity_list(["0.0.0.0/0", "::/0"])
    assert Identifier("ip", value) not in listed
    assert Identifier("ip", "203.0.113.7") in listed
