"""The REST interface as Upstash documents it: shapes of requests, of answers, and of refusals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

JSON = "application/json"
BASE64 = {"Upstash-Encoding": "base64"}
RESP2 = {"Upstash-Response-Format": "resp2"}


def run(http: httpx.Client, *command: object) -> object:
    """The result of a command that must succeed."""
    answer = http.post("/", json=command)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def test_a_command_is_an_array_in_the_body_of_any_content_type(http: httpx.Client):
    for content_type in (JSON, "text/plain", "application/x-www-form-urlencoded", "image/png"):
        answer = http.post("/", content=b'["ECHO","hi"]', headers={"Content-Type": content_type})
        assert answer.json() == {"result": "hi"}
        assert answer.headers["content-type"] == JSON


def test_a_command_is_a_path_with_arguments(http: httpx.Client):
    assert http.get("/set/foo/bar/EX/100").json() == {"result": "OK"}
    assert http.get("/GET/foo").json() == {"result": "bar"}
    assert run(http, "TTL", "foo") == 100


def test_segments_of_the_path_are_decoded_after_they_are_cut(http: httpx.Client):
    assert http.get("/set/a%2Fb%20c/%F0%9F%98%80+%25").json() == {"result": "OK"}
    assert run(http, "GET", "a/b c") == "😀+%"


def test_after_a_raw_body_come_the_query_parameters(http: httpx.Client):
    assert http.post("/set/k?EX=100&NX", content=b"a value").json() == {"result": "OK"}
    assert http.put("/set/k?NX", content=b"another").json() == {"result": None}
    assert (run(http, "GET", "k"), run(http, "TTL", "k")) == ("a value", 100)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_get_post_and_put_are_taken(http: httpx.Client, method: str):
    assert http.request(method, "/echo/hi").json() == {"result": "hi"}


def test_head_is_answered_as_get_without_the_body(http: httpx.Client):
    answer = http.head("/echo/hi")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len('{"result":"hi"}'))


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_other_methods_are_not_allowed(http: httpx.Client, method: str):
    answer = http.request(method, "/echo/hi")
    assert answer.status_code == 405
    assert method in answer.json()["error"]


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (["GET", "absent"], None),
        (["STRLEN", "absent"], 0),
        (["ECHO", "text"], "text"),
        (["MGET", "absent", "absent"], [None, None]),
        (["EVAL", "return {1,{'a',{2}},false,'z'}", 0], [1, ["a", [2]], None, "z"]),
        (["EVAL", "return {}", 0], []),
        (["XREAD", "STREAMS", "absent", "0"], None),
        (["PING"], "PONG"),
        (["INCRBYFLOAT", "f", 10.5], "10.5"),
        (["GEODIST", "absent", "a", "b"], None),
    ],
)
def test_each_type_of_reply_has_its_json(http: httpx.Client, command: list[object], result: object):
    assert run(http, *command) == result


def test_numbers_are_kept_as_they_were_written(http: httpx.Client):
    written = b'["RPUSH","l",1,-0,1.50,1e3,12345678901234567890,true,false]'
    assert http.post("/", content=written).json() == {"result": 7}
    assert run(http, "LRANGE", "l", 0, -1) == [
        "1", "-0", "1.50", "1e3", "12345678901234567890", "true", "false",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "EOF"),
        (b'{"a":1}', "expected JSON array"),
        (b'"PING"', "expected JSON array"),
        (b"[]", "ERR empty command"),
        (b'["SET","k",null]', "ERR null args are not supported"),
        (b'["SET","k",["v"]]', 'ERR unsupported arg type: "[": json.Delim'),
        (b'["SET","k",{"v":1}]', 'ERR unsupported arg type: "{": json.Delim'),
        (b'[["SET","k","v"]]', 'ERR unsupported arg type: "[": json.Delim'),
        (b'["PING"', "ERR invalid JSON"),
        (b'["SET","k",NaN]', "ERR invalid JSON"),
        (b'["SET","k","\xff"]', "ERR invalid JSON"),
        (b"[" * 100_000, "ERR invalid JSON"),
    ],
)
def test_what_is_no_command_is_refused_in_upstash_words(
    http: httpx.Client, body: bytes, error: str
):
    answer = http.post("/", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(error)


def test_half_a_surrogate_pair_becomes_the_replacement_character(http: httpx.Client):
    assert http.post("/", content=rb'["ECHO","\ud83d\ude00 \ud83d"]').json() == {"result": "😀 �"}


def test_a_failed_command_is_a_400_with_the_error_of_redis(http: httpx.Client):
    run(http, "SET", "k", "text")
    for command, error in (
        (["INCR", "k"], "ERR value is not an integer or out of range"),
        (["HGET", "k", "f"], "WRONGTYPE Operation against a key holding the wrong kind of value"),
        (["GET"], "ERR wrong number of arguments for 'get' command"),
    ):
        answer = http.post("/", json=command)
        assert (answer.status_code, answer.json()) == (400, {"error": error})


@pytest.mark.parametrize("name", ["BLPOP", "watch", "SUBSCRIBE", "MULTI", "AUTH", "CLIENT", "WAIT"])
def test_what_needs_a_connection_is_refused_and_not_hung_on(http: httpx.Client, name: str):
    answer = http.post("/", json=[name, "a", "0"])
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        f'ERR Command "{name.upper()}" is not allowed in REST or it has a special context path'
    )


@pytest.mark.parametrize(
    "name", ["CONFIG", "DEBUG", "SHUTDOWN", "CLUSTER", "NO.SUCH", "psync", "MOVE", "MEMORY"]
)
def test_what_upstash_has_not_is_not_available(http: httpx.Client, name: str):
    answer = http.post("/", json=[name, "GET"])
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"ERR Command is not available: '{name.upper()}'")


@pytest.mark.parametrize("name", ["JSON.SET", "SEARCH.QUERY", "ARSET", "DIGEST"])
def test_what_upstash_has_and_valkey_has_not_is_said_to_be_missing_here(
    http: httpx.Client, name: str
):
    answer = http.post("/", json=[name, "k", "$", "{}"])
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        f"ERR Command is not available: '{name}' is at Upstash, "
        "but not in the Valkey behind this local server"
    )


@pytest.mark.parametrize("name", ["DELIFEQ", "LCS", "OBJECT", "SORT", "sort_ro", "SPUBLISH"])
def test_what_valkey_has_and_upstash_has_not_would_fail_in_production_and_does_here(
    http: httpx.Client, name: str
):
    answer = http.post("/", json=[name, "k", "v"])
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"ERR Command is not available: '{name.upper()}'. ")


def test_a_group_or_stream_may_be_called_block(http: httpx.Client):
    run(http, "XGROUP", "CREATE", "BLOCK", "BLOCK", "0", "MKSTREAM")
    group = ["XREADGROUP", "GROUP", "BLOCK", "BLOCK", "STREAMS", "BLOCK", ">"]
    assert run(http, *group) is None


def test_base64_encodes_every_string_but_ok(http: httpx.Client):
    def encoded(*command: object) -> object:
        return http.post("/", json=command, headers=BASE64).json()["result"]

    assert encoded("SET", "k", "OK") == "OK"
    assert encoded("GET", "k") == "T0s="
    assert encoded("PING") == "UE9ORw=="
    assert encoded("MGET", "k", "absent") == ["T0s=", None]
    assert encoded("EVAL", "return {'a',{'b',1}}", 0) == ["YQ==", ["Yg==", 1]]
    answer = http.post("/", json=["GET"], headers=BASE64)
    assert answer.json()["error"].startswith("ERR wrong number")


def test_without_base64_what_is_not_utf8_is_replaced(http: httpx.Client):
    http.post("/set/k", content=b"a\xffb")
    assert run(http, "GET", "k") == "a�b"


def test_resp2_is_answered_raw(http: httpx.Client):
    def raw(*command: object) -> bytes:
        answer = http.post("/", json=command, headers=RESP2)
        assert answer.headers["content-type"] == "application/octet-stream"
        return answer.content

    assert raw("SET", "k", "v") == b"+OK\r\n"
    assert raw("MGET", "k", "absent") == b"*2\r\n$1\r\nv\r\n$-1\r\n"
    assert raw("XREAD", "STREAMS", "absent", "0") == b"*-1\r\n"
    assert raw("GET") == b"-ERR wrong number of arguments for 'get' command\r\n"
    pipelined = http.post("/pipeline", json=[["GET", "k"], ["INCR", "k"]], headers=RESP2)
    assert pipelined.content == (b"$1\r\nv\r\n-ERR value is not an integer or out of range\r\n")


def test_transactions_are_answered_in_json_also_when_resp2_is_asked_for(http: httpx.Client):
    assert http.post("/multi-exec", json=[["PING"]], headers=RESP2).json() == [{"result": "PONG"}]


@pytest.mark.parametrize(
    "headers",
    [BASE64 | RESP2, {"Upstash-Response-Format": "resp3"}, {"Upstash-Encoding": "rot13"}],
)
def test_forms_of_answer_that_are_not_there_are_refused(
    http: httpx.Client, headers: dict[str, str]
):
    answer = http.post("/", json=["PING"], headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("ERR ")


def test_the_token_may_be_a_parameter_and_bearer_may_be_missing(upstash: LocalUpstash):
    with httpx.Client(base_url=upstash.url) as stranger:
        assert stranger.get(f"/echo/hi?_token={upstash.token}").json() == {"result": "hi"}
        for shown in (f"bearer {upstash.token}", upstash.token):
            answer = stranger.get("/echo/hi", headers={"Authorization": shown})
            assert answer.json() == {"result": "hi"}
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"}):
            answer = stranger.get("/set/k/v", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"].startswith("WRONGPASS invalid or missing auth token")


def test_the_read_only_token_reads_and_does_not_write(upstash: LocalUpstash, http: httpx.Client):
    run(http, "SET", "k", "v")
    reader = httpx.Client(
        base_url=upstash.url, headers={"Authorization": f"Bearer {upstash.read_only_token}"}
    )
    with reader:
        assert run(reader, "GET", "k") == "v"
        assert run(reader, "PING") == "PONG"
        assert isinstance(run(reader, "MEMORY", "USAGE", "k"), int)
        for command in (["SET", "k", 1], ["SCAN", 0], ["KEYS", "*"], ["EVAL", "return 1", 0]):
            answer = reader.post("/", json=command)
            assert answer.status_code == 400
            assert answer.json()["error"].startswith("NOPERM ")
            assert f"'{str(command[0]).lower()}'" in answer.json()["error"]
        mixed = reader.post("/pipeline", json=[["GET", "k"], ["DEL", "k"]]).json()
        assert mixed[0] == {"result": "v"}
        assert mixed[1]["error"].startswith("NOPERM ")
        assert reader.post("/multi-exec", json=[["DEL", "k"]]).status_code == 400
    assert run(http, "GET", "k") == "v"


def test_the_sync_token_changes_with_writes_and_only_with_them(http: httpx.Client):
    def token(*command: str) -> str:
        return http.post("/", json=command).headers["upstash-sync-token"]

    first = token("SET", "k", "v")
    assert token("GET", "k") == first
    second = token("SET", "k", "v")
    assert second != first
    assert token("PING") == second
    assert token("EVAL", "return redis.call('SET', KEYS[1], 1)", "1", "k") != second


def test_a_command_above_the_size_limit_is_a_413_and_a_member_below_it_is_not(http: httpx.Client):
    big = "x" * (6 * 1024 * 1024)
    answer = http.post("/pipeline", json=[["SET", "a", big], ["SET", "b", big]])
    assert answer.json() == [{"result": "OK"}] * 2
    assert run(http, "STRLEN", "a") == len(big)
    answer = http.post("/", json=["SET", "a", big + big])
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("ERR max request size exceeded. Limit: 10485760 bytes")


def test_a_reply_above_the_size_limit_is_an_error_with_status_200(http: httpx.Client):
    run(http, "EVAL", "return redis.call('SET', KEYS[1], string.rep('x', 6000000))", 1, "k")
    limit = "ERR max request size exceeded. Limit: 10485760 bytes"
    answer = http.post("/", json=["MGET", "k", "k"])
    assert answer.status_code == 200
    assert answer.json()["error"].startswith(limit)
    members = http.post("/pipeline", json=[["GET", "k"], ["MGET", "k", "k"], ["PING"]]).json()
    assert [len(str(members[0]["result"])), members[2]] == [6_000_000, {"result": "PONG"}]
    assert members[1]["error"].startswith(limit)


def test_many_members_are_answered_in_order(http: httpx.Client):
    members = [["ECHO", str(number)] for number in range(2000)]
    answers = http.post("/pipeline", content=json.dumps(members)).json()
    assert [answer["result"] for answer in answers] == [str(number) for number in range(2000)]
