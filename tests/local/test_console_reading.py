"""The console's own reading of what the middleware keeps, against what the middleware writes."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from upstash_middleware.clock import SystemClock
from upstash_middleware.core.cache.entries import (
    Epoch,
    Epochs,
    StoredResponse,
    VariantIndex,
    encode,
)
from upstash_middleware.core.cache.http.directives import Staleness
from upstash_middleware.core.ratelimit import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.local.billing import Meter
from upstash_middleware.local.console import formats
from upstash_middleware.local.console.activity import (
    MAX_PENDING_EVENTS,
    Activity,
    Event,
    Watcher,
)
from upstash_middleware.local.console.formats import bill_chart
from upstash_middleware.local.console.handlers import render, render_event
from upstash_middleware.local.console.keys import (
    Cached,
    Key,
    LimitState,
    kind_of,
    read_body,
    read_cached,
    read_limit,
)
from upstash_middleware.local.faults import Fault
from upstash_middleware.local.valkey import Failure, Reply, Status
from upstash_middleware.messages import Headers

NOW = 1_795_646_797_795
KEY = "app:cache:entry:https://shop.example/products/7?a=b"

RESPONSE = StoredResponse(
    status=200,
    headers=Headers([(b"content-type", b"text/plain"), (b"x-name", b"caf\xe9")]),
    stored_at=1000.5,
    initial_age=2.5,
    lifetime=60.0,
    stale=Staleness(30.0, 15.0, True),
    packed=b"hello\x00world",
    length=11,
    tags=("product:7", "product"),
    epochs=Epochs(
        Epoch("a", "b"), Epoch("", ""), "g", {"product:7": Epoch("t", ""), "product": Epoch()}
    ),
    token="token",
)


def limit_view(limit: LimitState, now_ms: int) -> str:
    """The part of a key's page that shows a limit."""
    return render("limit.html", limit=limit, quota=None, now=now_ms / 1000).strip()


def cached_view(cached: Cached, now: float, purges: str = "VALID") -> str:
    """The part of a key's page that shows what the cache stores."""
    key = Key(KEY.encode(), "string", 60_000, 0, b"")
    return render("cached.html", cached=cached, key=key, purges=purges, now=now, ttl=60.0).strip()


def test_a_record_of_a_path_is_the_caches():
    """And no limit, although it begins with a number."""
    record = Key(b"shop:cache:query:/products/tea", "string", 60_000, 0, b"1700000000 key-order")
    assert kind_of(record, NOW) == ("cache record", "cache")


def kind(data: bytes) -> str:
    """What a list of keys says of an entry."""
    return kind_of(Key(KEY.encode(), "string", 60_000, 0, data[:200]), NOW)[0]


@pytest.mark.parametrize("raw", [True, False])
def test_an_entry_is_read_as_it_was_written(raw: bool):
    data = encode(KEY, RESPONSE, raw=raw)
    read = read_cached(KEY, data)
    assert read is not None
    assert (read.kind, read.response) == ("response", RESPONSE)
    assert (read.prefix, read.url) == ("app", "/products/7?a=b")
    assert read_body(RESPONSE, 5) == (b"hello", "")
    assert kind(data) == "cached response"


def test_an_index_is_read_as_it_was_written():
    index = VariantIndex(("accept", "cookie"), (), {"0123abcd": 2000}, Epochs())
    data = encode(KEY, index, raw=False)
    read = read_cached(KEY, data)
    assert read is not None
    assert (read.kind, read.index) == ("variants", index)
    assert kind(data) == "cache variants"


def test_an_entry_at_another_key_or_with_another_byte_is_none():
    data = encode(KEY, RESPONSE, raw=True)
    assert read_cached(KEY + "x", data) is None
    assert read_cached(KEY, data[:-1] + b"x") is None
    assert read_cached(KEY, data[:-1]) is None


@pytest.mark.parametrize(
    ("rest", "url"),
    [
        ("http://h/a", "/a"),
        ("v2:https://h:1/a#" + "0" * 32, "/a"),
        ("http://h/a#" + "0" * 32 + "#" + "1" * 32, "/a"),
        ("http://h#" + "0" * 64, "#" + "0" * 64),
        ("nothing known", ""),
    ],
)
def test_a_key_s_end_names_the_url_whose_purges_count(rest: str, url: str):
    key = f"p:cache:entry:{rest}"
    read = read_cached(key, encode(key, RESPONSE, raw=True))
    assert read is not None
    assert read.url == url


def where(limit: Limit, now_ms: int = NOW) -> str:
    """The key that the middleware writes to at this time."""
    found = limit.keys("my:app:/api:peer=a%3Ab", now_ms)
    return found[1] if isinstance(limit, SlidingWindow) else found[0]


@pytest.mark.parametrize("seconds", [0.25, 1, 10, 60, 90, 3600, 86_400, 30 * 86_400])
@pytest.mark.parametrize("algorithm", [FixedWindow, SlidingWindow])
@pytest.mark.parametrize("passed", [0.0, 0.4, 0.99])
def test_a_counter_s_window_and_algorithm_are_found_out(
    algorithm: type[FixedWindow | SlidingWindow], seconds: float, passed: float
):
    """By the window's number, and by how long the script keeps it."""
    window = int(seconds * 1000)
    now = NOW // window * window + int(window * passed)
    limit = algorithm(10, seconds)
    counts_until = (now // window + (2 if algorithm is SlidingWindow else 1)) * window
    ttl = counts_until - now + window // 8 + 1000
    read = read_limit(where(limit, now), b"7", now, ttl)
    assert read is not None
    if algorithm is FixedWindow or passed or seconds != 0.25:  # else both expire at that time
        assert read.title == algorithm.title
    facts = {label: number for label, _, number in read.state.facts}
    assert (read.state.used, facts["Window"]) == (7, window)
    assert facts["Began"] == now // window * window


@pytest.mark.parametrize(
    ("limit", "value", "title", "used", "facts"),
    [
        (
            TokenBucket(10, 1, 5),
            b"1795646787000:13:1",
            "token bucket",
            11,
            {"Refills": 1, "Every": 5000, "Refilled": 1795646797000},
        ),
        (GCRA(30, 60), b"%d:120000:30" % (NOW - 2000), "GCRA", 1.0, {"Empty": NOW + 2000}),
        (SlidingLog(9, 60), b"%d:2,%d:3" % (NOW - 70_000, NOW), "sliding log", 3, {"Entries": 2}),
        (
            Concurrency(5),
            b"%d:77,%d:78" % (NOW - 1, NOW + 1),
            "concurrency",
            1,
            {"Slot 78 expires": NOW + 1},
        ),
    ],
)
def test_a_limit_says_what_is_used_now(
    limit: Limit, value: bytes, title: str, used: float, facts: dict[str, int]
):
    read = read_limit(where(limit), value, NOW, 1000)
    assert read is not None
    assert (read.title, read.state.used) == (title, used)
    assert facts.items() <= {label: number for label, _, number in read.state.facts}.items()
    assert (read.prefix, read.rule) == ("my:app", "/api")
    assert (read.kind, read.identifier) == ("peer", "a:b")


@pytest.mark.parametrize(
    ("key", "value", "ttl"),
    [
        ("order:4711", b"17", 600_000),
        ("order:4711", b"17", -1),
        ("user:1:2", b"3", 60_000),
        ("app:/api:ip=1:29927444", b"not a number", 60_000),
        ("app:/api:ip=1:bucket.1000", b"hello", 60_000),
        ("app:/api:ip=1:log.1000", b"1:1,x", 60_000),
        ("app:/api:ip=1:gcra.1000", b"1:1:0", 60_000),
        ("7", b"7", 60_000),
    ],
)
def test_what_only_looks_like_a_limit_is_none(key: str, value: bytes, ttl: int):
    assert read_limit(key, value, NOW, ttl) is None


def test_the_sdk_s_counters_are_known_by_their_prefix():
    read = read_limit("@upstash/ratelimit:user:179564679", b"3", NOW, 9000)
    assert read is not None
    assert (read.title, read.state.used) == ("window", 3)
    assert ("Window", "ms", 10_000) in read.state.facts
    assert (read.rule, read.identifier) == ("", "user")


STATES = ["bucket.1000", "gcra.1000", "log.1000", "log.0", "slots", "1795646", "29927444"]


@given(
    st.sampled_from(STATES),
    st.one_of(
        st.binary(max_size=40),
        st.from_regex(rb"[0-9]{1,15}:-?[0-9]{1,16}(:[0-9]{1,15})?", fullmatch=True),
    ),
    st.integers(-1, 10**10),
)
@example("gcra.1000", b"999999999999999:9999999999999999:1", 1)
def test_no_value_of_a_limit_breaks_the_page(state: str, value: bytes, ttl: int):
    read = read_limit(f"p:r:k=v:{state}", value, NOW, ttl)
    if read is not None:
        assert limit_view(read, NOW).startswith("<section")


@given(st.floats(allow_nan=False, allow_infinity=False), st.binary(max_size=60), st.booleans())
@example(1e300, b"", True)
def test_no_number_in_an_entry_breaks_the_page(number: float, body: bytes, compressed: bool):
    odd = replace(
        RESPONSE, stored_at=number, lifetime=abs(number), packed=body, compressed=compressed
    )
    read = read_cached(KEY, encode(KEY, odd, raw=True))
    assert read is not None
    assert cached_view(read, NOW / 1000).startswith("<section")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_an_entry(data: bytes):
    kind(data)
    assert read_cached(KEY, data) is None
    assert read_cached(KEY, b"1a|b|c\n" + data) is None


@pytest.mark.parametrize(
    ("coding", "body", "shown"),
    [
        ("gzip", gzip.compress(b"hello, all", mtime=0), "hello, all"),
        ("gzip", b"no gzip at all", "no gzip at all"),
        ("br", b"\x8b\x04\x80", "\\x8b\\x04\\x80"),
    ],
)
def test_a_body_with_a_content_coding_is_opened_where_that_can_be(
    coding: str, body: bytes, shown: str
):
    headers = Headers([(b"content-encoding", coding.encode())])
    stored = replace(RESPONSE, headers=headers, packed=body, length=len(body))
    read = read_cached(KEY, encode(KEY, stored, raw=True))
    assert read is not None
    assert shown in cached_view(read, 1010.0)


def test_a_window_that_is_over_says_what_it_still_weighs():
    now = NOW // 60_000 * 60_000 + 15_000
    before = where(SlidingWindow(10, 60), now - 60_000)
    read = read_limit(before, b"8", now, 45_000 + 7500 + 1000)
    assert read is not None
    assert re.search(r"Still weighs</dt><dd><span>6<", limit_view(read, now))


# The bill over time, and who watches.


def test_the_meter_counts_commands_by_the_second_in_which_they_ran(
    monkeypatch: pytest.MonkeyPatch,
):
    now = [100.2]
    monkeypatch.setattr(SystemClock, "wall", lambda: now[0])
    meter = Meter()
    meter.add_command("GET", 2)
    now[0] = 100.9
    meter.add_command("SET")
    meter.add_command("PING")
    now[0] = 102.0
    meter.add_command("GET")
    assert list(meter.history) == [(100, {"GET": 2, "SET": 1}), (102, {"GET": 1})]
    meter.reset()
    meter.add_command("GET")
    assert list(meter.history) == [(102, {"GET": 1})]


def test_the_chart_puts_samples_in_their_place_and_the_smallest_commands_together():
    history = [(0, Counter({name: 20 - place for place, name in enumerate("ABCDEFG")}))]
    assert list(bill_chart(history, 0.0, 120).names) == ["A", "B", "C", "D", "E", "others"]
    for now, place in ((0.0, 59), (60.0, 29)):
        ((title, parts),) = bill_chart(history, now, 120).bars
        assert title.endswith("A 20, B 19, C 18, D 17, E 16, others 29")
        assert [part[:2] for part in parts] == [(series, place) for series in range(6)]
    assert not bill_chart(history, 121.0, 120).bars


@pytest.mark.parametrize(
    ("words", "reply", "shown"),
    [
        ([b"get", b"k"], None, ("<b>GET</b>", ">nil<")),
        ([b"GET", b""], b"x" * 500, ("&#34;&#34;", "x" * 120 + "…<")),
        ([b"EVALSHA", b"0123456789" * 4, b"0"], 7, (">0123", ">7<")),
        ([b"MGET", *[b"k"] * 20], [b"1", b"2"], ("… 8 more", ">[2]<")),
        ([b"SET", b"k", b"y" * 200], Status(b"OK"), ("y" * 120 + "…", ">OK<")),
        ([b"GET"], Failure(b"ERR <wrong>"), ('class="failed"', "ERR &lt;wrong&gt;")),
    ],
)
def test_a_line_of_the_history_is_short(words: list[bytes], reply: Reply, shown: tuple[str, str]):
    activity = Activity()
    activity.add_command(words, {}, reply, 1)
    line = render_event(replace(activity.history[-1], at=0.0))
    for part in ("00:00:00.000", *shown):
        assert part in line
    activity.add_command([b"GET", b"a\nb"], {"GET": 2}, b"a\nb", 3)
    assert "\n" not in render_event(activity.history[-1])
    assert "3 billed" in render_event(activity.history[-1])
    assert "12 more" in render_event(Event(0.0, missed=12))


def test_a_slow_watcher_is_told_how_much_it_missed():
    async def scenario() -> None:
        watcher = Watcher()
        for _ in range(MAX_PENDING_EVENTS + 7):
            watcher.put(Event(0.0, fault=Fault.QUOTA))
        events = await watcher.take()
        assert len(events) == MAX_PENDING_EVENTS + 1
        assert events[-1].missed == 7

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (formats.duration(0.25), "250 ms"),
        (formats.duration(0.00035), "0.35 ms"),
        (formats.share(0.001), "< 1 %"),
        (formats.share(0.999), "> 99 %"),
        (formats.share(0.25), "25 %"),
        (formats.duration(8.52), "8.5 s"),
        (formats.duration(7200), "2 h"),
        (formats.duration(172_800), "2 d"),
        (formats.dollars(6.1), "$6.10"),
        (formats.dollars(0.00025), "$0.00025"),
        (formats.moment(1e300), ""),
        (formats.text(b"a\n\xff\x1b[31m"), "a\\n\\xff\\x1b[31m"),
    ],
)
def test_amounts_are_said_as_people_say_them(said: str, expected: str):
    assert said == expected


@pytest.mark.parametrize("version", ["", "v1:"])
def test_a_key_below_a_prefix_names_its_url(version: str):
    key = f"app:cache:entry:{version}[/shop]https://shop.example/shop/products/7"
    read = read_cached(key, encode(key, RESPONSE, raw=True))
    assert read is not None
    assert read.url == "/shop/products/7"
