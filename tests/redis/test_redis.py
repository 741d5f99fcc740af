"""``Redis`` and ``AsyncRedis``: every command returns what it returns with the SDK."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import upstash_ratelimit
import upstash_ratelimit.asyncio
import upstash_redis
import upstash_redis.asyncio
from starlette.applications import Starlette
from starlette.testclient import TestClient
from upstash_redis.commands import Commands, JsonCommands
from upstash_redis.errors import UpstashError as SdkError
from upstash_redis.utils import GeoSearchResult

import upstash_middleware
from tests.upstash.raw_server import answer, raw_server, silent
from upstash_middleware import AsyncRedis, ConfigurationError, Redis, SyncData, SyncLimiter
from upstash_middleware.local import LocalUpstash
from upstash_middleware.starlette import RateLimitMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHA = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
"""Of ``return 1``."""

KM: Any = "KM"

COMMANDS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "append": [(("s", "!"), {})],
    "bitcount": [(("s",), {}), (("s", 0, 1), {})],
    "bitop": [(("NOT", "to", "s"), {})],
    "bitpos": [(("s", 1), {})],
    "client_setinfo": [(("LIB-NAME", "x"), {})],
    "copy": [(("s", "to"), {}), (("s", "l"), {"replace": True})],
    "dbsize": [((), {})],
    "decr": [(("n",), {}), (("l",), {})],
    "decrby": [(("n", 3), {})],
    "delete": [(("s", "n", "missing"), {})],
    "echo": [(("caf\u00e9",), {})],
    "eval": [(("return {KEYS[1], ARGV[1], 5, false}", ["k"], ["a"]), {})],
    "eval_ro": [(("return redis.call('GET', KEYS[1])", ["s"]), {})],
    "evalsha": [((SHA,), {})],
    "evalsha_ro": [((SHA,), {})],
    "execute": [((["GET", "s"],), {}), ((["NOSUCH"],), {})],
    "exists": [(("s", "missing"), {})],
    "expire": [(("s", 60), {}), (("s", 60), {"xx": True})],
    "expireat": [(("s", 4_000_000_000), {})],
    "flushall": [((), {})],
    "flushdb": [(("SYNC",), {})],
    "geoadd": [(("g", (13.5, 38.5, "c")), {"ch": True})],
    "geodist": [(("g", "a", "b"), {}), (("g", "a", "none"), {"unit": KM})],
    "geohash": [(("g", "a", "none"), {})],
    "geopos": [(("g", "a", "none"), {})],
    "georadius": [(("g", 15, 37, 200, KM), {"withdist": True, "withhash": True})],
    "georadius_ro": [(("g", 15, 37, 200, KM), {"withcoord": True, "order": "ASC"})],
    "georadiusbymember": [(("g", "a", 200, KM), {"order": "ASC"})],
    "georadiusbymember_ro": [(("g", "a", 200, KM), {"withdist": True, "order": "ASC"})],
    "geosearch": [(("g",), {"member": "a", "radius": 300, "unit": KM, "order": "ASC"})],
    "geosearchstore": [(("to", "g"), {"member": "a", "radius": 300, "unit": KM})],
    "get": [(("s",), {}), (("missing",), {}), (("l",), {})],
    "getbit": [(("s", 1), {})],
    "getdel": [(("s",), {})],
    "getex": [(("s",), {"ex": 60}), (("s",), {"persist": True})],
    "getrange": [(("s", 0, 2), {})],
    "getset": [(("s", "new"), {})],
    "hdel": [(("h", "a", "none"), {})],
    "hexists": [(("h", "a"), {}), (("h", "none"), {})],
    "hexpire": [(("h", ["a"], 60), {})],
    "hexpireat": [(("h", "a", 4_000_000_000), {})],
    "hexpiretime": [(("h", "a"), {})],
    "hget": [(("h", "a"), {}), (("h", "none"), {})],
    "hgetall": [(("h",), {}), (("missing",), {})],
    "hgetdel": [(("h", "a"), {})],
    "hgetex": [(("h", "a"), {"ex": 60})],
    "hincrby": [(("h", "n", 2), {})],
    "hincrbyfloat": [(("h", "n", 2.5), {})],
    "hkeys": [(("h",), {})],
    "hlen": [(("h",), {})],
    "hmget": [(("h", "a", "none"), {})],
    "hmset": [(("h", {"x": 1, "y": 2.5, "z": True}), {})],
    "hpersist": [(("h", "a"), {})],
    "hpexpire": [(("h", "a", 60_000), {})],
    "hpexpireat": [(("h", "a", 4_000_000_000_000), {})],
    "hpexpiretime": [(("h", "a"), {})],
    "hpttl": [(("h", "a"), {})],
    "hrandfield": [(("one",), {}), (("one", 1), {"withvalues": True})],
    "hscan": [(("h", 0), {"match": "*", "count": 100})],
    "hset": [(("h", "a", "v"), {}), (("h",), {"values": {"p": 1}})],
    "hsetex": [(("h", "a", "v"), {"ex": 60})],
    "hsetnx": [(("h", "a", "v"), {}), (("h", "new", "v"), {})],
    "hstrlen": [(("h", "a"), {})],
    "httl": [(("h", "a"), {})],
    "hvals": [(("h",), {})],
    "incr": [(("n",), {})],
    "incrby": [(("n", 5), {})],
    "incrbyfloat": [(("n", 1.5), {})],
    "keys": [(("o*",), {})],
    "lindex": [(("l", 0), {}), (("l", 99), {})],
    "linsert": [(("l", "BEFORE", "b", "x"), {})],
    "llen": [(("l",), {})],
    "lmove": [(("l", "to"), {})],
    "lpop": [(("l",), {}), (("l", 2), {})],
    "lpos": [(("l", "b"), {}), (("l", "b"), {"count": 0})],
    "lpush": [(("l", "x", 1, 2.5), {})],
    "lpushx": [(("missing", "x"), {})],
    "lrange": [(("l", 0, -1), {})],
    "lrem": [(("l", 1, "a"), {})],
    "lset": [(("l", 0, "x"), {}), (("l", 99, "x"), {})],
    "ltrim": [(("l", 0, 0), {})],
    "mget": [(("s", "missing", "l"), {})],
    "mset": [(({"p": 1, "q": "two"},), {})],
    "msetnx": [(({"s": 1},), {}), (({"new": 1},), {})],
    "persist": [(("s",), {})],
    "pexpire": [(("s", 60_000), {})],
    "pexpireat": [(("s", 4_000_000_000_000), {})],
    "pfadd": [(("hll", "a", "b"), {})],
    "pfcount": [(("hll",), {})],
    "pfmerge": [(("to", "hll"), {})],
    "ping": [((), {}), (("hello",), {})],
    "psetex": [(("s", 60_000, "v"), {})],
    "pttl": [(("s",), {})],
    "publish": [(("channel", "message"), {})],
    "randomkey": [((), {})],
    "rename": [(("s", "to"), {}), (("missing", "to"), {})],
    "renamenx": [(("s", "l"), {}), (("s", "to"), {})],
    "rpop": [(("l",), {}), (("missing", 2), {})],
    "rpoplpush": [(("l", "to"), {})],
    "rpush": [(("l", "x"), {})],
    "rpushx": [(("l", "x"), {})],
    "sadd": [(("set", "x", 1), {})],
    "scan": [((0,), {"match": "one", "count": 1000})],
    "scard": [(("set",), {})],
    "script_exists": [((SHA, "0" * 40), {})],
    "script_flush": [((), {})],
    "script_load": [(("return 1",), {})],
    "sdiff": [(("set", "set2"), {})],
    "sdiffstore": [(("to", "set", "set2"), {})],
    "set": [(("s", "v"), {}), (("s", "v"), {"nx": True}), (("s", 5), {"get": True, "ex": 60})],
    "setbit": [(("s", 1, 1), {})],
    "setex": [(("s", 60, "v"), {})],
    "setnx": [(("s", "v"), {})],
    "setrange": [(("s", 1, "zz"), {})],
    "sinter": [(("set", "set2"), {})],
    "sinterstore": [(("to", "set", "set2"), {})],
    "sismember": [(("set", "a"), {})],
    "smembers": [(("one-set",), {})],
    "smismember": [(("set", "a", "none"), {})],
    "smove": [(("set", "set2", "a"), {})],
    "spop": [(("one-set",), {})],
    "srandmember": [(("one-set",), {})],
    "srem": [(("set", "a"), {})],
    "sscan": [(("one-set",), {})],
    "strlen": [(("s",), {})],
    "substr": [(("s", 0, 1), {})],
    "sunion": [(("one-set",), {})],
    "sunionstore": [(("to", "set", "set2"), {})],
    "touch": [(("s",), {})],
    "ttl": [(("s",), {}), (("missing",), {})],
    "type": [(("l",), {})],
    "unlink": [(("s",), {})],
    "xack": [(("x", "group", "1-1"), {})],
    "xackdel": [(("x", "group", "1-1"), {})],
    "xadd": [(("x", "9-1", {"f": "v"}), {})],
    "xautoclaim": [(("x", "group", "c", 0, "0-0"), {})],
    "xclaim": [(("x", "group", "c", 0, "1-1"), {"justid": True})],
    "xdel": [(("x", "1-1"), {})],
    "xdelex": [(("x", "1-1"), {})],
    "xgroup_create": [(("x", "group2"), {})],
    "xgroup_createconsumer": [(("x", "group", "c"), {})],
    "xgroup_delconsumer": [(("x", "group", "c"), {})],
    "xgroup_destroy": [(("x", "group"), {})],
    "xgroup_setid": [(("x", "group", "0"), {})],
    "xinfo_consumers": [(("x", "group"), {})],
    "xinfo_groups": [(("x",), {})],
    "xlen": [(("x",), {})],
    "xpending": [(("x", "group"), {})],
    "xrange": [(("x",), {})],
    "xread": [(({"x": "0-0"},), {})],
    "xreadgroup": [(("group", "c", {"x": ">"}), {})],
    "xrevrange": [(("x",), {"count": 1})],
    "xtrim": [(("x",), {"maxlen": 1, "approximate": False})],
    "zadd": [(("z", {"d": 4}), {}), (("z", {"a": 1}), {"incr": True})],
    "zcard": [(("z",), {})],
    "zcount": [(("z", "-inf", 2), {})],
    "zdiff": [((["z", "z2"],), {"withscores": True})],
    "zdiffstore": [(("to", ["z", "z2"]), {})],
    "zincrby": [(("z", 1.5, "a"), {})],
    "zinter": [((["z", "z2"],), {"withscores": True})],
    "zinterstore": [(("to", ["z", "z2"]), {"weights": [1, 2], "aggregate": "MAX"})],
    "zlexcount": [(("z", "-", "+"), {})],
    "zmscore": [(("z", ["a", "none"]), {})],
    "zpopmax": [(("z",), {})],
    "zpopmin": [(("z", 2), {})],
    "zrandmember": [(("one-z",), {}), (("one-z", 1), {"withscores": True})],
    "zrange": [
        (("z", 0, -1), {"withscores": True}),
        (("z", 2, 1), {"sortby": "BYSCORE", "rev": True}),
    ],
    "zrangebylex": [(("z", "-", "+"), {})],
    "zrangebyscore": [(("z", "-inf", "+inf"), {"withscores": True})],
    "zrangestore": [(("to", "z", 0, 1), {})],
    "zrank": [(("z", "b"), {}), (("z", "none"), {})],
    "zrem": [(("z", "a"), {})],
    "zremrangebylex": [(("z", "-", "+"), {})],
    "zremrangebyrank": [(("z", 0, 0), {})],
    "zremrangebyscore": [(("z", 1, 1), {})],
    "zrevrange": [(("z", 0, -1), {"withscores": True})],
    "zrevrangebylex": [(("z", "+", "-"), {})],
    "zrevrangebyscore": [(("z", "+inf", "-inf"), {"withscores": True})],
    "zrevrank": [(("z", "b"), {})],
    "zscan": [(("z", 0), {})],
    "zscore": [(("z", "a"), {}), (("z", "none"), {})],
    "zunion": [((["z", "z2"],), {"withscores": True})],
    "zunionstore": [(("to", ["z", "z2"]), {})],
    "bitfield": [],
    "bitfield_ro": [],
    "time": [],
}
"""Calls of every method; those of the three last are in tests of their own."""

JSON: dict[str, list[tuple[Any, ...]]] = {
    name: [("j", *rest)]
    for name, rest in {
        "arrappend": ("$", 1), "arrindex": ("$", 1), "arrinsert": ("$", 0, 1), "arrlen": (),
        "arrpop": (), "arrtrim": ("$", 0, 1), "clear": (), "delete": (), "forget": (), "get": (),
        "merge": ("$", {"a": None}), "numincrby": ("$", 1), "nummultby": ("$", 2), "objkeys": (),
        "objlen": (), "resp": (), "set": ("$", {"a": [1, None]}), "strappend": ("$", "x"),
        "strlen": (), "toggle": (), "type": (),
    }.items()
} | {"mget": [(["j"], "$")], "mset": [([("j", "$", 1)],)]}  # fmt: skip
"""The local server has no JSON commands; what is sent shows in its error."""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalUpstash]:
    with LocalUpstash() as server:
        yield server


def seed(redis: Any) -> None:
    redis.flushall()
    pipeline = redis.pipeline()
    pipeline.set("s", "text")
    pipeline.set("n", 10)
    pipeline.rpush("l", "a", "b", "c")
    pipeline.sadd("set", "a", "b")
    pipeline.sadd("set2", "b")
    pipeline.sadd("one-set", "a")
    pipeline.hset("h", values={"a": "1", "n": 5})
    pipeline.hset("one", "f", "v")
    pipeline.zadd("z", {"a": 1, "b": 2.5, "c": 3})
    pipeline.zadd("z2", {"b": 1})
    pipeline.zadd("one-z", {"a": 1})
    pipeline.geoadd("g", (13.361389, 38.115556, "a"), (15.087269, 37.502669, "b"))
    pipeline.xadd("x", "1-1", {"f": "v"})
    pipeline.xadd("x", "2-1", {"g": "w"})
    pipeline.xgroup_create("x", "group", "0")
    pipeline.pfadd("hll", "x")
    pipeline.exec()
    redis.script_load("return 1")


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except SdkError as error:
        return f"error: {error}"


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


CALLS = [
    pytest.param(name, arguments, options, id=f"{name}-{number}")
    for name, calls in COMMANDS.items()
    for number, (arguments, options) in enumerate(calls)
]


def test_every_command_of_the_sdk_is_tested() -> None:
    for commands, listed in ((Commands, COMMANDS), (JsonCommands, JSON)):
        names = {name for name, _ in inspect.getmembers(commands, inspect.isfunction)}
        assert {name for name in names if not name.startswith("_")} == set(listed)


@pytest.mark.parametrize(("name", "arguments", "options"), CALLS)
def test_a_command_returns_what_the_sdk_returns(
    server: LocalUpstash, name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    sdk = upstash_redis.Redis(server.url, server.token, rest_retries=0)
    ours = Redis(server.url, server.token)
    async_ours = AsyncRedis(server.url, server.token)

    async def call() -> Any:
        try:
            return await getattr(async_ours, name)(*arguments, **options)
        finally:
            await async_ours.close()

    results = []
    for function in (
        lambda: getattr(sdk, name)(*arguments, **options),
        lambda: getattr(ours, name)(*arguments, **options),
        lambda: run(call()),
    ):
        seed(sdk)
        results.append(outcome(function))
    if name == "randomkey":
        results = [type(result) for result in results]
    if name == "keys":  # in any order
        results = [sorted(result) for result in results]
    assert results[1:] == results[:1] * 2
    sdk.close()
    ours.close()


def as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return type(value)(as_text(member) for member in value)
    if isinstance(value, GeoSearchResult):
        return as_text(vars(value))
    if isinstance(value, dict):
        return {as_text(key): as_text(member) for key, member in value.items()}
    return value


@pytest.mark.parametrize(("name", "arguments", "options"), CALLS)
def test_without_decoding_only_text_differs(
    server: LocalUpstash, name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with (
        Redis(server.url, server.token) as text,
        Redis(server.url, server.token, decode=False) as raw,
    ):
        results = []
        for redis in (text, raw):
            seed(text)
            results.append(as_text(outcome(partial(getattr(redis, name), *arguments, **options))))
    if name == "randomkey":
        results = [type(result) for result in results]
    assert results[1] == results[0]


@pytest.mark.parametrize("name", JSON)
def test_a_json_command_is_sent_as_the_sdk_sends_it(server: LocalUpstash, name: str) -> None:
    sdk = upstash_redis.Redis(server.url, server.token, rest_retries=0)
    ours = Redis(server.url, server.token)
    for arguments in JSON[name]:
        theirs, our = (partial(getattr(redis.json, name), *arguments) for redis in (sdk, ours))
        assert outcome(our) == outcome(theirs)
    sdk.close()
    ours.close()


@pytest.fixture
def redis(server: LocalUpstash) -> Iterator[Redis]:
    redis = Redis(server.url, server.token, deadline=20.0)
    redis.flushall()
    yield redis
    redis.close()


def test_bitfields_and_the_time(redis: Redis) -> None:
    assert redis.bitfield("b").set("u4", 0, 3).get("u4", 0).execute() == [0, 3]
    assert redis.bitfield_ro("b").get("u4", 0).execute() == [3]
    seconds, microseconds = redis.time()
    assert seconds > 1_700_000_000
    assert 0 <= microseconds < 1_000_000


def test_bytes_can_be_stored_and_read(redis: Redis, server: LocalUpstash) -> None:
    value = bytes(range(256))
    redis.set("k", value)  # type: ignore[arg-type]
    raw: Any = Redis(server.url, server.token, decode=False)
    assert raw.get("k") == value
    assert raw.pipeline().get("k").exec() == [value]
    with pytest.raises(ValueError, match="decode=False"):
        redis.get("k")
    raw.set("k", bytearray(value))
    assert raw.get("k") == value
    raw.set("k", memoryview(value))
    assert raw.get("k") == value
    raw.close()


def test_a_pipeline_keeps_the_results_of_its_other_commands(redis: Redis) -> None:
    pipeline = redis.pipeline()
    pipeline.set("k", "v").lpush("k", "x").get("k")
    with pytest.raises(upstash_middleware.CommandError, match="WRONGTYPE") as raised:
        pipeline.exec()
    first, second, third = raised.value.results  # type: ignore[attr-defined]
    assert (first, third) == (True, "v")
    assert isinstance(second, SdkError)
    assert pipeline.exec() == []
    pipeline.lpush("k", "x").get("k")
    failed, value = pipeline.exec(return_exceptions=True)
    assert isinstance(failed, upstash_middleware.CommandError)
    assert value == "v"


def test_a_reply_that_is_not_text_is_an_error_in_its_place(
    redis: Redis, server: LocalUpstash
) -> None:
    redis.set("text", "v")
    redis.rpush("bytes", b"\xff")  # type: ignore[arg-type]

    async def asynchronously(*, return_exceptions: bool) -> Any:
        async with AsyncRedis(server.url, server.token) as async_redis:
            pipeline: Any = async_redis.pipeline()
            pipeline.get("text").lrange("bytes", 0, -1).get("text")
            return await pipeline.exec(return_exceptions=return_exceptions)

    first, failed, third = run(asynchronously(return_exceptions=True))
    assert (first, third) == ("v", "v")
    assert isinstance(failed, ValueError)
    assert isinstance(failed, SdkError)
    assert "decode=False" in str(failed)
    with pytest.raises(upstash_middleware.UpstashError, match="decode=False") as raised:
        run(asynchronously(return_exceptions=False))
    assert raised.value.results == ["v", raised.value, "v"]  # type: ignore[attr-defined]


def test_an_empty_command_is_an_error_as_with_the_sdk(redis: Redis) -> None:
    pipeline = redis.pipeline()
    pipeline.execute(["GET", "k"]).execute([])
    for execute in (partial(redis.execute, []), pipeline.exec):
        with pytest.raises(SdkError, match="ERR empty command"):
            execute()
    with pytest.raises(upstash_middleware.CommandError):
        redis.execute([])


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_can_be_copied_and_pickled_with_their_results(
    redis: Redis, server: LocalUpstash, copied: Callable[[Any], Any]
) -> None:
    def call(redis: Any, value: str) -> Any:
        try:
            return redis.pipeline().set("k", value).lpush("k", value).exec()
        except SdkError as error:
            return error

    redis.rpush("bytes", b"\xff")  # type: ignore[arg-type]
    pipeline: Any = redis.pipeline()
    with raw_server(silent) as nobody:
        failed = [
            call(redis, "v"),
            call(Redis(nobody.url, "token", deadline=0.1), "v"),
            call(Redis("http://127.0.0.1:1", "token"), "v"),
            call(Redis(server.url, "wrong"), "v"),
            *pipeline.lpop("bytes").exec(return_exceptions=True),
        ]
    for error in failed:
        other = copied(error)
        assert type(other) is type(error)
        assert other.args == error.args
    assert len({type(error) for error in failed}) == 5
    first, second = copied(failed[0]).results
    assert first is True
    assert isinstance(second, upstash_middleware.CommandError)


def test_a_transaction_runs_as_one_or_not_at_all(redis: Redis, server: LocalUpstash) -> None:
    transaction = redis.multi()
    transaction.set("k", "caf\u00e9").incr("n").get("k")
    assert transaction.exec() == [True, 1, "caf\u00e9"]
    transaction.get("n")
    assert transaction.exec() == ["1"]
    broken = redis.multi()
    broken.execute(["NOSUCH"])
    broken.incr("n")
    with pytest.raises(SdkError):
        broken.exec(return_exceptions=True)  # there are no results to return
    assert redis.get("n") == "1"

    async def asynchronously() -> Any:
        async with AsyncRedis(server.url, server.token) as async_redis:
            transaction = async_redis.multi()
            transaction.incr("n").incr("n")
            return await transaction.exec()

    assert run(asynchronously()) == [2, 3]


def test_errors_are_this_packages_and_the_sdks() -> None:
    with raw_server(silent) as nobody:
        redis = Redis(nobody.url, "token", deadline=0.1)
        with pytest.raises(upstash_middleware.DeadlineExceeded) as raised:
            redis.get("k")
        assert isinstance(raised.value, SdkError)
        redis.close()


def test_a_value_above_the_size_limit_is_refused_and_opens_no_circuit(redis: Redis) -> None:
    too_large = "x" * (10 * 1024 * 1024 + 1)
    transaction = redis.multi()
    transaction.set("small", "v").set("k", too_large)
    pipeline = redis.pipeline()
    pipeline.set("small", "v").set("k", too_large)
    for send in (lambda: redis.set("k", too_large), transaction.exec, pipeline.exec):
        with pytest.raises(upstash_middleware.Refused, match="ERR max request size") as raised:
            send()
        assert isinstance(raised.value, SdkError)
    for _ in range(5):
        with pytest.raises(upstash_middleware.Refused):
            redis.set("k", too_large)
    assert redis.ping() == "PONG"


def test_slow_commands_open_no_circuit_and_failures_do(redis: Redis, server: LocalUpstash) -> None:
    async def wait() -> list[Any]:
        async with AsyncRedis(server.url, server.token, deadline=5.0) as patient:
            blocking = ["XREAD", "BLOCK", "2600", "STREAMS", "s", "$"]
            slow = await asyncio.gather(*(patient.execute(blocking) for _ in range(5)))
            return [*slow, await patient.ping()]

    assert run(wait()) == [[], [], [], [], [], "PONG"]
    with server.faults(fault="bad-gateway"):
        for _ in range(5):
            with pytest.raises(upstash_middleware.UnexpectedAnswer):
                redis.ping()
        with pytest.raises(upstash_middleware.CircuitOpen):
            redis.ping()


BLOCKING = [
    ["XREAD", "BLOCK", "0", "STREAMS", "s", "0"],
    [b"XREAD", b"BLOCK", "0", "STREAMS", "s", "0"],
    ["xreadgroup", "GROUP", "g", "c", "count", "1", "block", "0", "STREAMS", "s", ">"],
]


@pytest.mark.parametrize("command", BLOCKING, ids=["xread", "xread as bytes", "xreadgroup"])
@pytest.mark.parametrize("kind", ["threads", "event loop"])
def test_blocking_commands_share_no_request(
    redis: Redis, server: LocalUpstash, kind: str, command: list[Any]
) -> None:
    """In a shared request they would not wait, or the others would wait for them."""
    redis.xgroup_create("s", "g", "0", mkstream=True)

    def in_threads() -> list[Any]:
        with ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(redis.execute, command) for _ in range(8)]
            time.sleep(0.3)
            assert redis.ping() == "PONG"
            for number in range(8):
                redis.xadd("s", f"{number + 1}-0", {"f": "v"})
            return [each.result() for each in waiting]

    async def on_an_event_loop() -> list[Any]:
        async with AsyncRedis(server.url, server.token, deadline=20.0) as async_redis:
            waiting = [asyncio.create_task(async_redis.execute(command)) for _ in range(8)]
            await asyncio.sleep(0.3)
            assert await asyncio.gather(*(async_redis.ping() for _ in range(8))) == ["PONG"] * 8
            for number in range(8):
                await async_redis.xadd("s", f"{number + 1}-0", {"f": "v"})
            return [*await asyncio.gather(*waiting)]

    results = in_threads() if kind == "threads" else run(on_an_event_loop())
    assert all(results)


def test_a_server_that_hangs_opens_the_circuit() -> None:
    with raw_server(silent) as nobody:
        redis = Redis(nobody.url, "token", deadline=0.2)
        for _ in range(5):
            with pytest.raises(upstash_middleware.DeadlineExceeded, match=r"within 0\.2 s"):
                redis.ping()
        with pytest.raises(upstash_middleware.CircuitOpen):
            redis.ping()
        redis.close()


def test_a_value_above_the_size_limit_fails_no_concurrent_command(server: LocalUpstash) -> None:
    async def main() -> list[Any]:
        async with AsyncRedis(server.url, server.token, deadline=20.0) as redis:
            large = redis.set("k", "x" * (10 * 1024 * 1024 + 1))
            return await asyncio.gather(
                *(redis.ping() for _ in range(9)),
                large,
                *(redis.ping() for _ in range(9)),
                return_exceptions=True,
            )

    results = run(main())
    assert isinstance(results.pop(9), upstash_middleware.Refused)
    assert results == ["PONG"] * 18


def test_the_environment_names_the_database(
    server: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", server.url)
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", server.token)
    with Redis.from_env() as redis:
        assert redis.ping() == "PONG"
    with pytest.raises(upstash_middleware.ConfigurationError):
        Redis("redis://db.example", "token")


@pytest.fixture(params=[Redis, AsyncRedis])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_arguments_of_the_sdk_work_or_say_what_to_do(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", "https://db.example")
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", "token")
    for make in (partial(kind, "https://db.example", "token"), kind.from_env):
        make(allow_telemetry=False, read_your_writes=True)
        for argument in ("rest_encoding", "rest_retries", "rest_retry_interval"):
            with pytest.raises(
                TypeError, match=rf"^{kind.__name__}\(\) .*'{argument}'; leave it out"
            ):
                make(**{argument: 1})
        with pytest.raises(TypeError, match=rf"^{kind.__name__}\(\) got .* argument 'other'$"):
            make(other=1)
        with pytest.raises(ConfigurationError, match="read_your_writes: False should be True"):
            make(read_your_writes=False)


@pytest.mark.parametrize("allowed", [True, False])
def test_telemetry_can_be_turned_off(allowed: bool) -> None:
    with raw_server(answer(b"+PONG\r\n")) as server:
        redis = Redis(server.url, "token", allow_telemetry=allowed)
        assert redis.ping() == "PONG"
        redis.close()
    ((head, _),) = server.requests
    assert (b"Upstash-Telemetry" in head) is allowed


@pytest.mark.parametrize(
    "deadline", [None, "soon", float("nan"), float("inf"), 1e10, 0, -1, b"2s", True]
)
def test_a_deadline_that_is_no_duration_is_refused(kind: Any, deadline: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"deadline: .* should be a number of seconds above 0"
    ):
        kind("https://db.example", "token", deadline=deadline)


def test_a_deadline_may_be_any_duration(server: LocalUpstash) -> None:
    for deadline in ("2s", "500 ms", timedelta(seconds=2), 2):
        with Redis(server.url, server.token, deadline=deadline) as redis:
            assert redis.ping() == "PONG"


def test_an_url_or_token_that_is_no_text_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="token: should be text"):
        kind("https://db.example", b"token")
    with pytest.raises(ConfigurationError, match="url: should be text"):
        kind(b"https://db.example", "token")


def test_a_closed_client_connects_again_at_its_next_command(server: LocalUpstash) -> None:
    redis = Redis(server.url, server.token)
    redis.close()
    assert redis.ping() == "PONG"
    redis.close()
    assert redis.ping() == "PONG"
    redis.close()


def test_concurrent_commands_share_requests_except_under_trio() -> None:
    async def on_asyncio(redis: AsyncRedis) -> None:
        await asyncio.gather(*(redis.incr("n") for _ in range(50)))
        await redis.close()

    async def on_trio(redis: AsyncRedis) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(redis.incr, "n")
        await redis.close()

    with LocalUpstash() as server:
        redis = AsyncRedis(server.url, server.token, deadline=20)
        run(on_asyncio(redis))
        assert server.bill().requests < 50
        server.reset_bill()
        trio.run(on_trio, redis)
        assert server.bill().requests == 50


def test_an_async_client_is_used_on_event_loops_in_turn(server: LocalUpstash) -> None:
    redis = AsyncRedis(server.url, server.token)
    for number in range(3):
        assert run(redis.incr(f"loops-{number}")) == 1
    run(redis.close())


def test_its_credentials_are_those_of_the_middleware_limiters_and_data(
    server: LocalUpstash,
) -> None:
    for redis in (Redis(server.url, server.token), AsyncRedis(server.url, server.token)):
        app = Starlette()
        app.add_middleware(RateLimitMiddleware, default_limit="100/minute", redis=redis)
        with TestClient(app) as client:
            assert "ratelimit" in client.get("/").headers
        limiter = SyncLimiter("5/minute", name="of-a-client", redis=redis)
        assert limiter.hit(type(redis).__name__).remaining == 4
        data = SyncData(redis=redis)
        data.set("k", type(redis).__name__, ttl=60)
        assert data.get("k") == type(redis).__name__
    with pytest.raises(ConfigurationError, match="redis is an instance of builtins"):
        SyncData(redis=5).get("k")


@pytest.mark.parametrize(
    "algorithm",
    [
        upstash_ratelimit.FixedWindow(2, 60),
        upstash_ratelimit.SlidingWindow(2, 60),
        upstash_ratelimit.TokenBucket(2, 1, 60),
    ],
    ids=["fixed", "sliding", "bucket"],
)
def test_upstash_ratelimit_runs_over_it(redis: Redis, server: LocalUpstash, algorithm: Any) -> None:
    limiter = upstash_ratelimit.Ratelimit(redis, algorithm)
    assert [limiter.limit("user").allowed for _ in range(3)] == [True, True, False]

    async def asynchronously() -> list[bool]:
        async with AsyncRedis(server.url, server.token) as async_redis:
            limiter = upstash_ratelimit.asyncio.Ratelimit(async_redis, algorithm)
            return [(await limiter.limit("other")).allowed for _ in range(3)]

    assert run(asynchronously()) == [True, True, False]
