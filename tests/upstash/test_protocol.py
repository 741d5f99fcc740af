"""Commands to a call, and an answer to replies: examples, and any bytes at all."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.core.flow import Command
from upstash_middleware.errors import (
    CommandError,
    Refusal,
    Refused,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash import protocol
from upstash_middleware.upstash.protocol import Response, decode, decode_replies

RESP2 = "application/octet-stream"
JSON = "application/json; charset=utf-8"
RAW = b"\xff\x00raw"


def as_resp2(reply):
    """Encode a reply as RESP2, straight from the specification."""
    if isinstance(reply, CommandError):
        return b"-%b\r\n" % str(reply).encode()
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n%b" % (len(reply), b"".join(map(as_resp2, reply)))


def comparable(reply):
    """Take a CommandError as its text, since exceptions are equal only to themselves."""
    if isinstance(reply, list):
        return [comparable(member) for member in reply]
    return ("error", str(reply)) if isinstance(reply, CommandError) else reply


lines = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1)
scalars = (
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40) | lines.map(CommandError)
)
replies = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["result", "error", "", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


RESP2_REQUESTED = ("Upstash-Response-Format", "resp2")


def encode(commands):
    return protocol.encode([Command(tuple(words)) for words in commands])


class TestCalls:
    """What is sent."""

    def test_one_command_is_a_json_array_posted_to_the_root(self):
        call = encode([("SET", "ключ", b"v\xc3\xa9", "EX", 60)])
        assert call.path == "/"
        assert json.loads(call.body) == ["SET", "ключ", "vé", "EX", "60"]
        assert call.headers == (("Content-Type", "application/json"), RESP2_REQUESTED)

    def test_several_are_an_array_of_arrays_posted_to_pipeline(self):
        call = encode([("GET", "a"), ("INCRBY", "b", -(2**63))])
        assert call.path == "/pipeline"
        assert json.loads(call.body) == [["GET", "a"], ["INCRBY", "b", str(-(2**63))]]

    @pytest.mark.parametrize(
        ("command", "path"),
        [
            (("SET", "k", RAW), "/set/k"),
            (("SET", "k", RAW, "PX", 60_000), "/set/k?PX=60000"),
            (("SET", "k", RAW, "NX", "PX", 5), "/set/k?NX&PX=5"),
            (("set", b"a b/c?d#e%", RAW), "/set/a%20b%2Fc%3Fd%23e%25"),
            (("SET", "é", RAW, "KEEPTTL"), "/set/%C3%A9?KEEPTTL"),
            (("HSET", "h", "field", RAW), "/hset/h/field"),
            (("ECHO", RAW), "/echo"),
        ],
    )
    def test_bytes_that_are_no_text_are_the_body_and_the_rest_is_in_the_url(self, command, path):
        call = encode([command])
        assert (call.path, call.body) == (path, RAW)
        assert call.headers == (("Content-Type", "application/octet-stream"), RESP2_REQUESTED)

    @pytest.mark.parametrize(
        "commands",
        [
            [("GET", "k"), ("SET", "k", RAW)],
            [("SET", RAW, "v")],
            [("SET", RAW, RAW)],
            [("SET", "k", RAW, "PX", RAW)],
            [("HSET", "h", "f", RAW, "g", "v")],
            [("EVALSHA", "sha", 1, "k", RAW, "more")],
        ],
    )
    def test_bytes_that_cannot_travel_are_a_value_error_that_names_the_command(self, commands):
        name = commands[-1][0]
        with pytest.raises(ValueError, match=name):
            encode(commands)

    @pytest.mark.parametrize("key", ["", ".", ".."])
    def test_a_key_that_a_url_would_lose_is_a_value_error(self, key):
        with pytest.raises(ValueError, match="cannot be part of a path"):
            encode([("SET", key, RAW)])
        assert encode([("SET", key, "text")]).path == "/"

    @pytest.mark.parametrize("commands", [[("GET", "\ud800")], [("SET", "\ud800", RAW)]])
    def test_text_without_utf8_is_a_value_error_that_names_the_command(self, commands):
        with pytest.raises(ValueError, match=f"{commands[0][0]}.*surrogate"):
            encode(commands)

    @given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=1), min_size=2))
    def test_any_text_survives_the_way_there(self, commands):
        assert json.loads(encode([tuple(command) for command in commands]).body) == commands


class TestResp2:
    """RESP2 as sent by a Redis server."""

    @given(st.lists(replies, min_size=2, max_size=5))
    def test_what_a_server_encodes_comes_back(self, expected):
        answer = Response(200, RESP2, b"".join(map(as_resp2, expected)))
        assert comparable(decode(answer, len(expected), "")) == comparable(expected)

    @given(replies)
    def test_every_truncation_is_refused(self, reply):
        whole = as_resp2(reply)
        for end in range(1, len(whole)):
            with pytest.raises(ValueError, match=r"\w"):
                decode_replies(whole[:end])

    @given(replies, st.binary(min_size=1))
    def test_what_is_left_over_is_refused(self, reply, rest):
        answer = Response(200, RESP2, as_resp2(reply) + rest)
        with pytest.raises(UnexpectedAnswer):
            decode(answer, 1, "")

    def test_a_simple_string_is_bytes_too(self):
        assert decode_replies(b"+OK\r\n*-1\r\n") == [b"OK", None]

    @pytest.mark.parametrize(
        "data",
        [
            b":\r\n",
            b":1_0\r\n",
            b": 1\r\n",
            b":1.0\r\n",
            b":" + b"9" * 5000 + b"\r\n",
            b"$-2\r\n",
            b"$+1\r\na\r\n",
            b"$1\r\nab\r\n",
            b"*-2\r\n",
            b"*99999999999\r\n",
            b"*3\r\n:1\r\n",
            b"+a\rb\r\n",
            b"_\r\n",
            b"%1\r\n+a\r\n+b\r\n",
            b"*1\r\n#t\r\n",
            b":1\r\n,1.5\r\n",
            b"*2\r\n:1\r\n%1\r\n:1\r\n:2\r\n",
            b"\r\n",
            b"OK\r\n",
            b"+OK\n",
        ],
    )
    def test_what_is_not_resp2_is_refused(self, data):
        with pytest.raises(ValueError, match=r"\w"):
            decode_replies(data)

    def test_arrays_that_nest_without_end_are_refused(self):
        assert decode_replies(b"*1\r\n" * 8 + b":1\r\n")
        with pytest.raises(ValueError, match="nesting"):
            decode_replies(b"*1\r\n" * 50_000 + b":1\r\n")

    @pytest.mark.parametrize(
        "data",
        [
            b"*2500000\r\n",
            b"*60000\r\n" + b":1\r\n" * 60_000 + b"*60000\r\n",
            b":1\r\n>2500000\r\n",
            b"*2\r\n:1\r\n>2500000\r\n",
        ],
    )
    def test_arrays_beyond_all_bounds_are_refused_before_they_are_read(self, data):
        with pytest.raises(ValueError, match="more than 100000 members"):
            decode_replies(data)

    def test_a_pipelines_replies_may_come_in_one_array(self):
        assert decode(Response(200, RESP2, b"*2\r\n:1\r\n$1\r\na\r\n"), 2, "") == [1, b"a"]

    def test_one_commands_array_stays_an_array(self):
        assert decode(Response(200, RESP2, b"*1\r\n:1\r\n"), 1, "") == [[1]]


class TestJson:
    """Plain JSON, from a server that does not know RESP2."""

    def test_one_result(self):
        body = '{"result":["é",1,null,["OK"]]}'.encode()
        assert decode(Response(200, JSON, body), 1, "") == [["é".encode(), 1, None, [b"OK"]]]

    def test_a_pipelines_results_with_a_failed_member(self):
        first, second = decode(Response(200, JSON, b'[{"result":"OK"},{"error":"ERR x"}]'), 2, "")
        assert first == b"OK"
        assert isinstance(second, CommandError)

    def test_a_string_that_looks_like_base64_is_itself(self):
        assert decode(Response(200, JSON, b'{"result":"T0s="}'), 1, "") == [b"T0s="]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"null",
            b"1",
            b"{}",
            b"[]",
            b'{"result":1.5}',
            b'{"result":true}',
            b'{"result":{"a":1}}',
            b'{"result":NaN}',
            b'{"result":"\\ud800"}',
            b'{"error":7}',
            b'{"result":' + b"9" * 5000 + b"}",
            b'{"result":' + b"[" * 100_000,
            b"\xff\xfe",
        ],
    )
    def test_other_json_is_an_unexpected_answer(self, body):
        with pytest.raises(UnexpectedAnswer):
            decode(Response(200, JSON, body), 1, "")


class TestAnswersAsAWhole:
    """Statuses, wrong counts, and errors in place of replies."""

    @pytest.mark.parametrize(("replies", "expected"), [(b":1\r\n", 2), (b":1\r\n:2\r\n", 1)])
    def test_another_number_of_replies_is_an_unexpected_answer(self, replies, expected):
        with pytest.raises(UnexpectedAnswer, match="replies to"):
            decode(Response(200, RESP2, replies), expected, "")

    @pytest.mark.parametrize("kind", ["text/html", "", "text/plain", "application/jsonp"])
    def test_another_content_type_is_an_unexpected_answer(self, kind):
        with pytest.raises(UnexpectedAnswer, match="content type"):
            decode(Response(200, kind, b":1\r\n"), 1, "")

    @pytest.mark.parametrize("status", [201, 302, 404, 405, 413, 429, 500, 502, 503])
    def test_another_status_is_an_unexpected_answer_that_names_it(self, status):
        with pytest.raises(UnexpectedAnswer, match=str(status)):
            decode(Response(status, JSON, b'{"result":1}'), 1, "")

    @pytest.mark.parametrize("expected", [1, 2])
    @pytest.mark.parametrize("transaction", [False, True])
    def test_a_413_of_upstash_refuses_the_size(self, expected, transaction):
        said = "ERR max request size exceeded. Limit: 10485760 bytes, Actual: 12000004 bytes."
        answer = Response(413, JSON, json.dumps({"error": said}).encode())
        with pytest.raises(Refused) as raised:
            decode(answer, expected, "", transaction=transaction)
        assert (str(raised.value), raised.value.kind) == (said, Refusal.SIZE)

    @pytest.mark.parametrize("body", [b"<html>", b'{"error":"no"}', b"[1]", b"[" * 10_000])
    def test_a_413_of_a_proxy_is_an_unexpected_answer(self, body):
        with pytest.raises(UnexpectedAnswer, match="413"):
            decode(Response(413, JSON, body), 1, "")

    def test_one_error_for_a_pipeline_is_no_members_error(self):
        said = b'{"error":"ERR failed to parse pipeline request"}'
        with pytest.raises(UnexpectedAnswer, match="failed to parse"):
            decode(Response(400, JSON, said), 2, "")
        with pytest.raises(UnexpectedAnswer, match="failed to parse"):
            decode(Response(400, RESP2, b"-ERR failed to parse pipeline request\r\n"), 2, "")

    @pytest.mark.parametrize(
        "text",
        [
            "ERR max requests limit exceeded. Limit: 500000, Usage: 500000.",
            "ERR max daily request limit exceeded. Limit: 10000, Usage: 10000.",
            "ERR max request size exceeded",
            "ERR DB capacity quota exceeded",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'set' command",
        ],
    )
    @pytest.mark.parametrize("expected", [1, 2])
    def test_token_and_plan_refuse_the_whole(self, text, expected):
        for answer in (
            Response(400, JSON, json.dumps({"error": text}).encode()),
            Response(400, RESP2, f"-{text}\r\n".encode()),
        ):
            with pytest.raises(Refused, match=text[:20]):
                decode(answer, expected, "")

    def test_a_members_refusal_is_that_members_error(self):
        first, second = decode(Response(200, RESP2, b":1\r\n-NOPERM no\r\n"), 2, "")
        assert first == 1
        assert isinstance(second, CommandError)

    @given(
        st.integers(100, 599) | st.sampled_from([200, 400]),
        st.sampled_from([RESP2, JSON, "text/html", ""]) | st.text(),
        st.binary() | st.lists(replies).map(lambda many: b"".join(map(as_resp2, many))),
        st.integers(1, 3),
    )
    def test_any_answer_is_replies_or_an_error_of_ours(self, status, kind, body, expected):
        error = None
        try:
            assert len(decode(Response(status, kind, body), expected, "token")) == expected
        except UpstashError as raised:
            error = raised
        assert error is None or (len(str(error)) < 600 and "\n" not in str(error))

    @given(ANY_JSON | ANY_JSON.map(lambda value: [{"result": value}]), st.integers(1, 3))
    def test_any_json_is_replies_or_an_error_of_ours(self, value, expected):
        """Of any shape, and with strings that are base64 or are not."""
        for status in (200, 400):
            with suppress(UpstashError):
                found = decode(
                    Response(status, JSON, json.dumps(value).encode()), expected, "token"
                )
                assert len(found) == expected

    @given(st.integers(0, 400), st.sampled_from([200, 400, 401, 500]))
    def test_the_token_is_never_shown(self, before, status):
        body = b"x" * before + b"s3cret-token" * 200 + b"y" * 400
        with pytest.raises(UpstashError) as raised:
            decode(Response(status, "text/plain", body), 1, "s3cret-token")
        assert "s3cret" not in str(raised.value)

    @pytest.mark.parametrize("kind", [RESP2, JSON])
    def test_what_users_stored_is_not_shown_when_an_answer_is_cut_short(self, kind):
        with pytest.raises(UnexpectedAnswer, match="it has 27 bytes") as raised:
            decode(Response(200, kind, b"$400\r\nsomebody's private pa"), 1, "")
        assert "private" not in str(raised.value)
