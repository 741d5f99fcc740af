"""Limits as text and as values: what is read, and what is refused with words that help."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    parse_limits,
)
from upstash_middleware.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("10/10s", [SlidingWindow(10, 10)]),
        ("10/s", [SlidingWindow(10, 1)]),
        ("5 per minute; 100 per day", [SlidingWindow(5, 60), SlidingWindow(100, 86_400)]),
        ("5/minute,100/day", [SlidingWindow(5, 60), SlidingWindow(100, 86_400)]),
        ("10/s burst 20", [GCRA(10, 1, burst=20)]),
        ("gcra 10/s", [GCRA(10, 1)]),
        ("log 10/s", [SlidingLog(10, 1)]),
        ("fixed 1_000 / 2 hours", [FixedWindow(1000, 7200)]),
        ("1 in 250 ms", [SlidingWindow(1, 0.25)]),
        ("3/1.5s", [SlidingWindow(3, 1.5)]),
        ("7 PER WEEK", [SlidingWindow(7, 604_800)]),
        ("7/month", [SlidingWindow(7, 30 * 86_400)]),
    ],
)
def test_text_is_read_as_written(text: str, limits: list[Limit]) -> None:
    """Each notation of the documentation means what it says."""
    assert parse_limits(text) == tuple(limits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not a limit; write for instance '10/10s'"),
        ("10", "'10' is not a limit"),
        ("10/10", "'10/10' is not a limit"),
        ("-1/s", "'-1/s' is not a limit"),
        ("5/min;;6/h", "'' in '5/min;;6/h' is not a limit"),
        ("10/fortnight", "unknown unit of time 'fortnight'; known: ms, s, min"),
        ("leaky 10/s", "unknown algorithm 'leaky'; known: fixed, sliding, gcra, log"),
        ("fixed 10/s burst 20", "only 'gcra' has a burst"),
        ("0/s", "limit should be a whole number from 1 to"),
        ("1/0s", "per should be a number of seconds"),
        ("1/500d", "per should be a number of seconds"),
    ],
)
def test_text_that_is_no_limit_is_refused_with_what_would_be_right(text: str, words: str) -> None:
    """The message shows the part at fault and a notation that works."""
    with pytest.raises(ConfigurationError) as caught:
        parse_limits(text)
    assert words in str(caught.value)


@given(st.integers(1, 10**6), st.integers(1, 90), st.sampled_from(["s", "m", "h", "d"]))
def test_any_number_in_any_unit_reads_back(quota: int, number: int, unit: str) -> None:
    """In each of the notations for it."""
    seconds = number * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[unit]
    for text in (f"{quota}/{number}{unit}", f"{quota} per {number} {unit}".upper()):
        assert parse_limits(text) == (SlidingWindow(quota, seconds),)
        assert parse_limits(f"fixed {text}") == (FixedWindow(quota, seconds),)


@given(st.text(st.sampled_from("0123456789_/ .;,smhdperatonceburstfixgl"), max_size=30))
def test_what_is_nearly_a_limit_is_read_or_refused(text: str) -> None:
    with suppress(ConfigurationError):
        assert parse_limits(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but a ConfigurationError."""
    with suppress(ConfigurationError):
        assert parse_limits(text)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10", None, 10**15, float("nan")])
def test_a_limit_that_is_no_whole_number_is_refused(wrong: object) -> None:
    """Zero, fractions, booleans, text and what a double cannot hold."""
    for make in (
        lambda: FixedWindow(wrong, 60),  # type: ignore[arg-type]
        lambda: SlidingWindow(wrong, 60),  # type: ignore[arg-type]
        lambda: TokenBucket(wrong, 1, 60),  # type: ignore[arg-type]
        lambda: TokenBucket(1, wrong, 60),  # type: ignore[arg-type]
        lambda: GCRA(wrong, 60),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigurationError, match="should be a whole number from 1"):
            make()


@pytest.mark.parametrize(
    "wrong", [0, -1, "60", None, True, float("nan"), float("inf"), 0.0005, 0.0015, 10**9]
)
def test_a_window_that_is_no_time_is_refused(wrong: object) -> None:
    """Windows are whole milliseconds, up to 400 days."""
    with pytest.raises(
        ConfigurationError, match="per should be a number of seconds, a timedelta or text"
    ):
        SlidingWindow(10, wrong)  # type: ignore[arg-type]


def test_arithmetic_that_a_double_cannot_hold_is_refused() -> None:
    """A burst times its window, and a bucket that takes years to fill."""
    with pytest.raises(ConfigurationError, match="should be at most 2\\^52"):
        GCRA(10**12, 86_400)
    with pytest.raises(ConfigurationError, match="within 400 days"):
        TokenBucket(1000, 1, 86_400)
    with pytest.raises(ConfigurationError, match="within 400 days"):
        GCRA(1, 86_400, burst=1000)


def test_windows_are_whole_milliseconds_and_may_be_timedeltas() -> None:
    """A timedelta is as good as seconds; a float's rounding error does no harm."""
    assert SlidingWindow(1, timedelta(minutes=5)).milliseconds == 300_000
    assert SlidingWindow(1, 0.1).milliseconds == 100
    assert SlidingWindow(1, 2.3).milliseconds == 2300


def test_a_quota_is_whole_again_within_its_span() -> None:
    """The draft's `w` of a bucket is the time in which it fills."""
    assert TokenBucket(20, 5, 2).span_ms == 8000
    assert TokenBucket(21, 5, 2).span_ms == 10_000
    assert GCRA(10, 1, burst=25).span_ms == 2500
    assert SlidingWindow(10, 60).span_ms == 60_000
