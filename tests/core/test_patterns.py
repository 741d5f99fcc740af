"""Path patterns match what they say, in time that a path cannot stretch."""

from __future__ import annotations

import time

import pytest

from upstash_middleware.core.patterns import PathPattern
from upstash_middleware.errors import ConfigurationError


@pytest.mark.parametrize(
    ("pattern", "path", "parts"),
    [
        ("/p/{id}", "/p/7", {"id": "7"}),
        ("/p/{id}", "/p/7/", {"id": "7"}),
        ("/p/{id}", "/p/", None),
        ("/p/{id}", "/p/7/edit", None),
        ("/", "/", {}),
        ("/a.b", "/axb", None),
        ("/files/{rest:path}", "/files/a/b.txt", {"rest": "a/b.txt"}),
        ("/{rest:path}", "/", {"rest": ""}),
        ("/p/{id}", "/p/a\nb", {"id": "a\nb"}),
    ],
)
def test_a_pattern_matches(pattern, path, parts):
    assert PathPattern.parse(pattern).match(path) == parts


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("api", "begins with a slash"),
        ("/api/*", "no wildcard"),
        ("/a//b", "empty segment"),
        ("/a?page=1", "no query"),
        ("/caf%C3%A9", "matched decoded"),
        ("/{rest:path}/x", "must come last"),
        ("/x-{id}", "whole segment"),
        ("/{id}/{id}", "redefinition"),
    ],
)
def test_a_pattern_that_could_never_match_is_refused_with_the_reason(pattern, reason):
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        PathPattern.parse(pattern)
    assert repr(pattern) in str(refusal.value)


def test_no_path_makes_a_pattern_backtrack():
    pattern = PathPattern.parse("/{a}/{b}/{c}/{d}/end/{rest:path}")
    began = time.perf_counter()
    assert pattern.match("/" + "a/" * 200_000) is None
    assert time.perf_counter() - began < 1
