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
        ("api", "begins with a slash; write '/api'"),
        ("/a//b", "empty segment"),
        ("/a?page=1", "no query"),
        ("/caf%C3%A9", "decoded before matching"),
        ("/{rest:path}/x", "must be last"),
        ("/x-{id}", "whole segment"),
        ("/{id}/{id}", "redefinition"),
    ],
)
def test_a_pattern_that_could_never_match_is_refused_with_the_reason(pattern, reason):
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        PathPattern.parse(pattern)
    assert repr(pattern) in str(refusal.value)


@pytest.mark.parametrize(
    ("pattern", "right"),
    [
        ("/login/<name>", "/login/{name}"),
        ("/p/<int:id>", "/p/{id}"),
        ("p/<slug:slug>/", "/p/{slug}"),
        ("/files/<path:rest>", "/files/{rest:path}"),
        ("/<any(a, b):kind>/x", "/{kind}/x"),
        (r"^p/(?P<id>\d+)/$", "/^p/{id}/$"),
        ("/users/:id", "/users/{id}"),
        ("/users/:id?/posts", "/users/{id}/posts"),
        ("/p/{id:int}", "/p/{id}"),
        ("/p/[id]", "/p/{id}"),
        ("/docs/[...slug]", "/docs/{slug:path}"),
        ("/api/*", "/api/{rest:path}"),
        ("/api/**", "/api/{rest:path}"),
        ("/api/*/posts/*/x", "/api/{name1}/posts/{name3}/x"),
    ],
)
def test_a_pattern_of_another_syntax_is_refused_with_the_pattern_to_write(pattern, right):
    with pytest.raises(ConfigurationError) as refusal:
        PathPattern.parse(pattern)
    assert f"write {right!r}" in str(refusal.value)


@pytest.mark.parametrize(
    "pattern", ["/v1/items:batch", "/odata/$metadata", "/a;b=c", "/@user", "/a<b"]
)
def test_punctuation_in_a_path_is_text(pattern):
    assert PathPattern.parse(pattern).match(pattern) == {}


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/p/{id}", "/p/7", True),
        ("/p/{id}", "/shop/p/7/", True),
        ("/p/{id}", "/shop/p/7/edit", False),
        ("/p/{id}", "/shop-p/7", False),
        ("/", "/shop/", True),
        ("/files/{rest:path}", "/shop/files/a/b", True),
    ],
)
def test_a_pattern_matches_the_end_of_a_path_that_has_a_prefix(pattern, path, matches):
    assert PathPattern.parse(pattern).matches_end(path) is matches


def test_no_path_makes_a_pattern_backtrack():
    pattern = PathPattern.parse("/{a}/{b}/{c}/{d}/end/{rest:path}")
    began = time.process_time()
    assert pattern.match("/" + "a/" * 200_000) is None
    assert time.process_time() - began < 1
