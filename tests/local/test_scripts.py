"""Scripts and functions: they answer as on Redis, are billed, and keep to their declared keys."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upstash_middleware.local.commands import prepare
from upstash_middleware.local.scripts import wrap, wrap_library
from upstash_middleware.local.valkey import Failure, Store, parse_address

if TYPE_CHECKING:
    import httpx

    from upstash_middleware.local import LocalUpstash
    from upstash_middleware.local.valkey import Reply

LOCKING = "#!lua flags=allow-key-locking\n"
BODIES = [
    "return 1",
    "return 3.99",
    "return -0.5",
    "return 'text'",
    "return true",
    "return false",
    "return nil",
    "",
    "local unused",
    "return {}",
    "return {1, 2, nil, 4}",
    "return {1, {'a', {ok = 'fine'}}, false, 2.7}",
    "return {ok = 'fine'}",
    "return {err = 'MY own error'}",
    "return redis.status_reply('SAID')",
    "return redis.error_reply('MY error')",
    "return redis.sha1hex('x')",
    "return cjson.encode({a = {1, 2}})",
    "return {KEYS[1], ARGV[1], #KEYS, #ARGV}",
    "return redis.call('SET', KEYS[1], ARGV[1])",
    "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])",
    "redis.call('RPUSH', KEYS[1], 1, 2, 3) return redis.call('LRANGE', KEYS[1], 0, -1)",
    "return redis.call('GET', KEYS[1])",
    "return redis.pcall('GET')",
    "local answer = redis.pcall('NO.SUCH') return answer.err",
    "return {redis.call('GET', KEYS[1])}",
    "return #redis.call('TIME')",
    "return select('#', ...)",
    "return type(redis.LOG_DEBUG)",
    "local redis = redis return redis.call('EXISTS', KEYS[1])",
    "return 1 -- a comment at the end",
    "return server ~= nil",
    "return redis.call('SET', KEYS[1], 1) and string.rep('x', 3)",
    "redis.setresp(3) return redis.call('HGETALL', KEYS[1])",
]
RAISING = [
    "error('boom')",
    "\n\nerror('boom')",
    "error({err = 'MY thing'})",
    "local nothing\nreturn nothing.field",
    "return undefined_name",
    "new_global = 1",
    "redis.call = nil",
    "local function endless() return 1 + endless() end endless()",
    "error('two\\r\\nlines')",
    "\nlocal x = redis.call('GET')\nreturn x",
    "local x = redis.call('NO.SUCH')",
    "local function deep()\n  error('deep')\nend\ndeep()",
    "local x = redis.call()",
    "return +",
    "local x = redis.call('INCRBY', KEYS[1], 'text')",
]


async def raw(upstash: LocalUpstash, *command: bytes) -> Reply:
    """What the Valkey behind answers itself, without anything in between."""
    store = Store(parse_address(upstash.redis_url))
    try:
        return (await store.run([command]))[0]
    finally:
        store.close()


async def wrapped(upstash: LocalUpstash, *command: bytes) -> Reply:
    """The same command as this server sends it, and its reply as this server reads it."""
    prepared = prepare(list(command), {})
    return prepared.finish(await raw(upstash, *prepared.command))[0]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("body", BODIES)
async def test_a_script_answers_as_it_does_unwrapped(upstash: LocalUpstash, body: str):
    command = [b"EVAL", body.encode(), b"1", b"k", b"v"]
    expected = await raw(upstash, *command)
    await raw(upstash, b"FLUSHALL")
    assert await wrapped(upstash, *command) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("body", RAISING)
async def test_a_script_that_fails_says_so_with_the_same_words_and_line(
    upstash: LocalUpstash, body: str
):
    command = [b"EVAL", body.encode(), b"1", b"k"]
    expected, got = await raw(upstash, *command), await wrapped(upstash, *command)
    assert isinstance(expected, Failure)
    assert isinstance(got, Failure)
    # Valkey names no script; Redis, and this server with it, names the script's SHA.
    sha = hashlib.sha1(body.encode()).hexdigest().encode()
    assert got.text.replace(b"script: " + sha + b", on", b"script: on") == expected.text


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    value=st.recursive(
        st.one_of(st.integers(-(2**53), 2**53), st.text(max_size=5), st.booleans()),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=10,
    )
)
async def test_any_value_of_lua_comes_back_unchanged(upstash: LocalUpstash, value: object):
    command = [b"EVAL", b"return " + in_lua(value), b"0"]
    assert await wrapped(upstash, *command) == await raw(upstash, *command)


def in_lua(value: object) -> bytes:
    if isinstance(value, list):
        return b"{" + b",".join(map(in_lua, value)) + b"}"
    if isinstance(value, str):
        return b"'" + b"".join(b"\\%03d" % byte for byte in value.encode()) + b"'"
    return str(value).lower().encode()


def test_a_raised_error_is_billed_with_the_calls_before_it(
    upstash: LocalUpstash, http: httpx.Client
):
    script = "redis.call('SET', KEYS[1], 1) redis.call('INCR', KEYS[1]) error('enough')"
    assert http.post("/", json=["EVAL", script, 1, "k"]).status_code == 400
    assert upstash.bill().by_command == {"EVAL": 1, "SET": 1, "INCR": 1}


def test_under_key_locking_declared_keys_are_free_to_use(http: httpx.Client):
    script = LOCKING + "redis.call('SET', KEYS[1], 1) return redis.call('MGET', KEYS[1], KEYS[2])"
    assert http.post("/", json=["EVAL", script, 2, "a", "b"]).json() == {"result": ["1", None]}
    free = LOCKING + "return {#redis.call('TIME'), redis.call('PING')}"
    assert http.post("/", json=["EVAL", free, 0]).json() == {"result": [2, "PONG"]}


@pytest.mark.parametrize(
    "call",
    ["'GET', 'other'", "'MGET', KEYS[1], 'other'", "'set', KEYS[1] .. ARGV[1], 1",
     "'XREAD', 'STREAMS', KEYS[1], 'other', 0, 0"],
)  # fmt: skip
def test_under_key_locking_an_undeclared_key_is_refused(http: httpx.Client, call: str):
    key = "kx" if "ARGV" in call else "other"
    expected = (
        "ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set. "
        f"Key was: {key}"
    )
    raising = http.post("/", json=["EVAL", f"{LOCKING}return redis.call({call})", 1, "k", "x"])
    assert (raising.status_code, raising.json()) == (400, {"error": expected})
    caught = f"{LOCKING}return redis.pcall({call}).err"
    assert http.post("/", json=["EVAL", caught, 1, "k", "x"]).json() == {"result": expected}
    assert http.get("/dbsize").json() == {"result": 0}


def test_under_key_locking_the_whole_database_is_out_of_reach(http: httpx.Client):
    http.get("/set/k/v")
    answer = http.post("/", json=["EVAL", f"{LOCKING}redis.call('FLUSHDB')", 0])
    assert answer.status_code == 400
    assert "'allow-key-locking'" in answer.json()["error"]
    assert http.get("/get/k").json() == {"result": "v"}


@pytest.mark.parametrize(
    "shebang",
    ["#!lua flags=allow-key-locking,no-writes", "#!lua flags=no-writes,allow-key-locking"],
)
def test_other_flags_beside_key_locking_still_hold(http: httpx.Client, shebang: str):
    script = f"{shebang}\nlocal x = redis.call('SET', KEYS[1], 1)"
    error = http.post("/", json=["EVAL", script, 1, "k"]).json()["error"]
    assert error.startswith("ERR Write commands are not allowed from read-only scripts.")
    assert error.endswith("on @user_script:2.")


def test_a_flag_that_nobody_knows_is_refused(http: httpx.Client):
    answer = http.post("/", json=["EVAL", "#!lua flags=nonsense\nreturn 1", 0])
    assert answer.status_code == 400
    assert "nonsense" in answer.json()["error"]


def test_scripts_answer_to_the_sha_of_the_text_as_sent(http: httpx.Client):
    text = LOCKING + "return redis.call('INCR', KEYS[1])"
    sha = hashlib.sha1(text.encode()).hexdigest()
    assert http.get(f"/script/exists/{sha}").json() == {"result": [0]}
    assert http.post("/", json=["EVALSHA", sha, 1, "n"]).json() == {
        "error": "NOSCRIPT No matching script. Please use EVAL."
    }
    assert http.post("/", json=["SCRIPT", "LOAD", text]).json() == {"result": sha}
    assert http.post("/", json=["EVALSHA", sha.upper(), 1, "n"]).json() == {"result": 1}
    assert http.post("/", json=["SCRIPT", "EXISTS", sha, "0" * 40]).json() == {"result": [1, 0]}
    assert http.get("/script/flush").json() == {"result": "OK"}
    assert http.post("/", json=["EVALSHA", sha, 1, "n"]).status_code == 400
    assert http.post("/", json=["EVAL", text, 1, "n"]).json() == {"result": 2}
    assert http.post("/", json=["EVALSHA", sha, 1, "n"]).json() == {"result": 3}


@pytest.mark.parametrize("path", ["/pipeline", "/multi-exec"])
def test_a_script_can_be_loaded_and_run_in_one_batch(http: httpx.Client, path: str):
    text = f"return 'run by {path}'"
    sha = hashlib.sha1(text.encode()).hexdigest()
    members = [["SCRIPT", "LOAD", text], ["SCRIPT", "EXISTS", sha], ["EVALSHA", sha, 0]]
    assert http.post(path, json=members).json() == [
        {"result": sha}, {"result": [1]}, {"result": f"run by {path}"},
    ]  # fmt: skip


def test_a_script_that_does_not_compile_is_not_loaded(http: httpx.Client):
    answer = http.post("/", json=["SCRIPT", "LOAD", "return +"])
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("ERR Error compiling script")


def test_functions_run_are_billed_and_listed_as_they_were_sent(
    upstash: LocalUpstash, http: httpx.Client
):
    code = (
        "#!lua name=shop\n"
        "local function put(keys, args) return redis.call('SET', keys[1], args[1]) end\n"
        "redis.register_function('put', put)\n"
        "redis.register_function{function_name='seen', flags={'no-writes'},\n"
        "  callback=function(keys) return {redis.call('GET', keys[1]), redis.sha1hex('')} end}\n"
    )
    assert http.post("/", json=["FUNCTION", "LOAD", code]).json() == {"result": "shop"}
    assert http.post("/", json=["FCALL", "put", 1, "k", "v"]).json() == {"result": "OK"}
    result = http.post("/", json=["FCALL_RO", "seen", 1, "k"]).json()["result"]
    assert result == ["v", hashlib.sha1(b"").hexdigest()]
    assert upstash.bill().by_command == {
        "FUNCTION": 1, "FCALL": 1, "SET": 1, "FCALL_RO": 1, "GET": 1,
    }  # fmt: skip
    listed = http.post("/", json=["FUNCTION", "LIST", "WITHCODE"]).json()["result"]
    assert listed[0][-1] == code


def test_a_function_with_key_locking_keeps_to_its_keys(http: httpx.Client):
    code = (
        "#!lua name=locks\n"
        "redis.register_function{function_name='f', flags={'allow-key-locking'},\n"
        "  callback=function(keys, args) return redis.call('SET', args[1], 1) end}\n"
    )
    assert http.post("/", json=["FUNCTION", "LOAD", code]).json() == {"result": "locks"}
    assert http.post("/", json=["FCALL", "f", 1, "a", "a"]).json() == {"result": "OK"}
    error = http.post("/", json=["FCALL", "f", 1, "a", "b"]).json()["error"]
    assert error.startswith("ERR Dynamic keys are not allowed")
    assert error.endswith("Key was: b")


def test_a_function_that_fails_names_itself_and_its_line(http: httpx.Client):
    code = "#!lua name=bad\nredis.register_function('f', function()\n  error('boom')\nend)"
    http.post("/", json=["FUNCTION", "LOAD", code])
    error = http.post("/", json=["FCALL", "f", 0]).json()["error"]
    assert error == "ERR user_function:3: boom script: f, on @user_function:3."


def test_a_reply_without_a_bottom_is_an_error(http: httpx.Client):
    answer = http.post("/", json=["EVAL", "local t = {} t[1] = t return t", 0])
    assert answer.status_code == 400
    assert answer.json() == {"error": "ERR the reply is nested too deeply"}


def test_a_script_that_never_ends_is_stopped(http: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("upstash_middleware.local.valkey.STUCK_SECONDS", 0.5)
    answer = http.post("/", json=["EVAL", "while true do end", 0], timeout=20)
    assert answer.status_code == 400
    assert "killed" in answer.json()["error"]
    assert http.get("/ping").json() == {"result": "PONG"}


def test_wrapping_adds_no_line_before_the_users_text():
    for text in (b"return 1", b"#!lua\nreturn 1", LOCKING.encode() + b"return 1"):
        before = wrap(text).wrapped.partition(b"return 1")[0]
        assert before.count(b"\n") == text.partition(b"return 1")[0].count(b"\n")
    assert wrap_library(b"#!lua name=x\nreturn 1").partition(b"return 1")[0].count(b"\n") == 1
