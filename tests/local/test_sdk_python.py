"""The Python SDK as a client: every kind of command that it has, sync and async, in both encodings.

Expected values come from the commands' documentation at Redis, in the shapes that the SDK gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import upstash_redis.commands
from upstash_redis.asyncio import Redis as AsyncRedis
from upstash_redis.errors import UpstashError

from tests.local.command_options import OPTIONS, Arguments, Step, left

if TYPE_CHECKING:
    import httpx
    from upstash_redis import Redis

    from upstash_middleware.local import LocalUpstash

pytestmark = [pytest.mark.anyio]

STRINGS: list[Step] = [
    ("set", ["k", "välue"], True),
    ("get", ["k"], "välue"),
    ("set", {"key": "k", "value": "x", "nx": True}, False),
    ("set", {"key": "k", "value": "next", "get": True}, "välue"),
    ("append", ["k", "!"], 5),
    ("strlen", ["k"], 5),
    ("getrange", ["k", 0, 3], "next"),
    ("substr", ["k", -1, -1], "!"),
    ("setrange", ["k", 1, "EX"], 5),
    ("getset", ["k", 10], "nEXt!"),
    ("incr", ["k"], 11),
    ("incrby", ["k", 9], 20),
    ("decr", ["k"], 19),
    ("decrby", ["k", 9], 10),
    ("incrbyfloat", ["k", 0.5], 10.5),
    ("getdel", ["k"], "10.5"),
    ("get", ["k"], None),
    ("mset", [{"a": 1, "b": True, "c": 2.5}], True),
    ("mget", ["a", "b", "c", "d"], ["1", "true", "2.5", None]),
    ("msetnx", [{"a": 1, "z": 2}], False),
    ("setex", ["t", 100, "v"], True),
    ("psetex", ["t", 100_000, "v"], True),
    ("setnx", ["t", "w"], False),
    ("getex", {"key": "t", "persist": True}, "v"),
    ("ttl", ["t"], -1),
    ("set", ["empty", ""], True),
    ("get", ["empty"], ""),
    ("set", ["ok", "OK"], True),
    ("get", ["ok"], "OK"),
    ("mget", ["ok"], ["OK"]),
    ("set", ["json", {"a": [1, None]}], True),
    ("get", ["json"], '{"a": [1, null]}'),
    ("set", ["none", None], True),
    ("get", ["none"], "null"),
]

KEYS: list[Step] = [
    ("mset", [{"a": 1, "b": 2}], True),
    ("exists", ["a", "b", "c"], 2),
    ("touch", ["a", "c"], 1),
    ("type", ["a"], "string"),
    ("type", ["c"], "none"),
    ("expire", ["a", 100], True),
    ("expire", {"key": "a", "seconds": 50, "gt": True}, False),
    ("ttl", ["a"], left(100)),
    ("pexpire", ["a", 50_000], True),
    ("persist", ["a"], True),
    ("expireat", ["a", 4_000_000_000], True),
    ("pexpireat", ["a", 4_000_000_000_000], True),
    ("persist", ["c"], False),
    ("pttl", ["c"], -2),
    ("copy", ["a", "c"], True),
    ("rename", ["c", "d"], True),
    ("renamenx", ["d", "a"], False),
    ("delete", ["d", "e"], 1),
    ("unlink", ["b"], 1),
    ("keys", ["*"], ["a"]),
    ("scan", [0], (0, ["a"])),
    ("scan", {"cursor": 0, "match": "x*", "count": 10}, (0, [])),
    ("scan", {"cursor": 0, "type": "hash"}, (0, [])),
    ("randomkey", [], "a"),
    ("dbsize", [], 1),
    ("flushdb", ["ASYNC"], True),
    ("flushall", ["SYNC"], True),
    ("randomkey", [], None),
    ("ping", [], "PONG"),
    ("ping", ["hello"], "hello"),
    ("echo", ["hello"], "hello"),
    ("client_setinfo", ["LIB-NAME", "test"], "OK"),
    ("publish", ["channel", "message"], 0),
]

HASHES: list[Step] = [
    ("hset", ["h", "a", 1], 1),
    ("hset", {"key": "h", "values": {"a": 2, "b": "x"}}, 1),
    ("hget", ["h", "a"], "2"),
    ("hget", ["h", "z"], None),
    ("hgetall", ["h"], {"a": "2", "b": "x"}),
    ("hgetall", ["none"], {}),
    ("hexists", ["h", "a"], True),
    ("hincrby", ["h", "a", 3], 5),
    ("hincrbyfloat", ["h", "a", 0.5], 5.5),
    ("hkeys", ["h"], ["a", "b"]),
    ("hvals", ["h"], ["5.5", "x"]),
    ("hlen", ["h"], 2),
    ("hmget", ["h", "a", "z"], ["5.5", None]),
    ("hmset", ["h", {"c": 3}], True),
    ("hsetnx", ["h", "c", 4], False),
    ("hstrlen", ["h", "b"], 1),
    ("hscan", ["h", 0], (0, {"a": "5.5", "b": "x", "c": "3"})),
    ("hdel", ["h", "b", "c"], 2),
    ("hrandfield", ["h"], "a"),
    ("hrandfield", {"key": "h", "count": 1, "withvalues": True}, {"a": "5.5"}),
    ("hexpire", ["h", "a", 100], [1]),
    ("hexpire", ["h", ["a", "z"], 100], [1, -2]),
    ("httl", ["h", "a"], [left(100)]),
    ("hpexpire", ["h", "a", 50_000], [1]),
    ("hexpireat", ["h", "a", 4_000_000_000], [1]),
    ("hexpiretime", ["h", "a"], [4_000_000_000]),
    ("hpexpireat", ["h", "a", 4_000_000_000_000], [1]),
    ("hpexpiretime", ["h", "a"], [4_000_000_000_000]),
    ("hpersist", ["h", "a"], [1]),
    ("hpttl", ["h", "a"], [-1]),
    ("hsetex", {"key": "h", "field": "e", "value": "v", "ex": 100}, 1),
    ("hgetdel", ["h", "e"], ["v"]),
]

LISTS: list[Step] = [
    ("rpush", ["l", "a", "b", "c"], 3),
    ("lpush", ["l", "z"], 4),
    ("lpushx", ["none", "z"], 0),
    ("rpushx", ["l", "d"], 5),
    ("lrange", ["l", 0, -1], ["z", "a", "b", "c", "d"]),
    ("lindex", ["l", 0], "z"),
    ("lindex", ["l", 99], None),
    ("linsert", ["l", "BEFORE", "a", "y"], 6),
    ("llen", ["l"], 6),
    ("lpos", ["l", "b"], 3),
    ("lpos", {"key": "l", "element": "b", "count": 0}, [3]),
    ("lset", ["l", 0, "Z"], True),
    ("lrem", ["l", 1, "y"], 1),
    ("ltrim", ["l", 0, 3], "OK"),
    ("lmove", ["l", "m", "LEFT", "RIGHT"], "Z"),
    ("rpoplpush", ["l", "m"], "c"),
    ("lpop", ["l"], "a"),
    ("rpop", ["l", 2], ["b"]),
    ("lpop", ["l"], None),
    ("lpop", ["l", 2], None),
]

SETS: list[Step] = [
    ("sadd", ["s", "a", "b", "c"], 3),
    ("sadd", ["t", "b", "c", "d"], 3),
    ("scard", ["s"], 3),
    ("sismember", ["s", "a"], True),
    ("smismember", ["s", "a", "z"], [True, False]),
    ("sdiff", ["s", "t"], ["a"]),
    ("sdiffstore", ["u", "s", "t"], 1),
    ("sinterstore", ["u", "s", "t"], 2),
    ("sunionstore", ["u", "s", "t"], 4),
    ("smove", ["s", "t", "a"], True),
    ("srem", ["s", "b", "z"], 1),
    ("smembers", ["s"], ["c"]),
    ("sinter", ["s", "t"], ["c"]),
    ("sscan", ["s"], (0, ["c"])),
    ("srandmember", ["s"], "c"),
    ("srandmember", ["s", 5], ["c"]),
    ("spop", ["s", 5], ["c"]),
    ("spop", ["s"], None),
]

SORTED_SETS: list[Step] = [
    ("zadd", ["z", {"a": 1, "b": 2.5, "c": 3}], 3),
    ("zadd", {"key": "z", "scores": {"a": 1}, "incr": True}, 2.0),
    ("zadd", {"key": "z", "scores": {"x": 1}, "xx": True}, 0),
    ("zscore", ["z", "b"], 2.5),
    ("zscore", ["z", "none"], None),
    ("zmscore", ["z", ["a", "none"]], [2.0, None]),
    ("zrange", ["z", 0, -1], ["a", "b", "c"]),
    ("zrange", {"key": "z", "start": 0, "stop": 0, "withscores": True}, [("a", 2.0)]),
    ("zrange", {"key": "z", "start": "(2", "stop": "+inf", "sortby": "BYSCORE"}, ["b", "c"]),
    ("zrangebyscore", {"key": "z", "min": 2, "max": 2.5, "withscores": True},
     [("a", 2.0), ("b", 2.5)]),
    ("zrevrange", ["z", 0, 0], ["c"]),
    ("zrevrangebyscore", ["z", "+inf", "-inf"], ["c", "b", "a"]),
    ("zrangebylex", ["z", "-", "[a"], ["a"]),
    ("zcard", ["z"], 3),
    ("zcount", ["z", 2, "(3"], 2),
    ("zlexcount", ["z", "-", "+"], 3),
    ("zincrby", ["z", 10, "a"], 12.0),
    ("zrank", ["z", "a"], 2),
    ("zrevrank", ["z", "none"], None),
    ("zdiff", [["z", "none"]], ["b", "c", "a"]),
    ("zinter", {"keys": ["z", "z"], "withscores": True, "aggregate": "MAX"},
     [("b", 2.5), ("c", 3.0), ("a", 12.0)]),
    ("zunion", {"keys": ["z"], "weights": [2.0], "withscores": True},
     [("b", 5.0), ("c", 6.0), ("a", 24.0)]),
    ("zunionstore", ["y", ["z"]], 3),
    ("zinterstore", ["y", ["z", "z"]], 3),
    ("zdiffstore", ["y", ["z", "z"]], 0),
    ("zrangestore", ["y", "z", 0, 1], 2),
    ("zscan", ["y", 0], (0, [("b", 2.5), ("c", 3.0)])),
    ("zremrangebyrank", ["y", 0, 0], 1),
    ("zremrangebyscore", ["y", 3, 3], 1),
    ("zremrangebylex", ["y", "-", "+"], 0),
    ("zpopmax", ["z"], [("a", 12.0)]),
    ("zpopmin", ["z", 5], [("b", 2.5), ("c", 3.0)]),
    ("zrem", ["z", "a"], 0),
    ("zrandmember", ["z"], None),
]  # fmt: skip

OTHERS: list[Step] = [
    ("setbit", ["b", 7, 1], 0),
    ("getbit", ["b", 7], 1),
    ("bitcount", ["b"], 1),
    ("bitpos", ["b", 1], 7),
    ("set", ["c", "\x03"], True),
    ("bitop", ["AND", "d", "b", "c"], 1),
    ("get", ["d"], "\x01"),
    ("bitop", ["DIFF", "d", "c", "b"], 1),
    ("get", ["d"], "\x02"),
    ("bitop", ["DIFF1", "d", "b", "c"], 1),
    ("get", ["d"], "\x02"),
    ("bitop", ["ANDOR", "d", "c", "b", "none"], 1),
    ("get", ["d"], "\x01"),
    ("bitop", ["ONE", "d", "c", "b"], 1),
    ("get", ["d"], "\x02"),
    ("bitop", ["ONE", "d", "none"], 0),
    ("exists", ["d"], 0),
    ("pfadd", ["p", "a", "b"], True),
    ("pfcount", ["p"], 2),
    ("pfmerge", ["q", "p"], True),
    ("geoadd", ["g", (13.361389, 38.115556, "Palermo"), (15.087269, 37.502669, "Catania")], 2),
    ("geodist", ["g", "Palermo", "Catania", "KM"], 166.2742),
    ("geodist", ["g", "Palermo", "none"], None),
    ("geohash", ["g", "Palermo"], ["sqc8b49rny0"]),
    ("geosearch", {"key": "g", "member": "Palermo", "radius": 200, "unit": "KM", "order": "DESC"},
     ["Catania", "Palermo"]),
    ("geosearchstore",
     {"destination": "n", "source": "g", "member": "Palermo", "radius": 1, "unit": "M"}, 1),
    ("georadius", ["g", 15, 37, 100, "KM"], ["Catania"]),
    ("georadiusbymember_ro", ["g", "Palermo", 1, "M"], ["Palermo"]),
    ("xadd", ["x", "1-1", {"f": "v"}], "1-1"),
    ("xlen", ["x"], 1),
    ("xrange", ["x"], [["1-1", ["f", "v"]]]),
    ("xrevrange", ["x"], [["1-1", ["f", "v"]]]),
    ("xread", [{"x": "0"}], [["x", [["1-1", ["f", "v"]]]]]),
    ("xread", [{"x": "9-0"}], []),
    ("xgroup_create", ["x", "group", "0"], "OK"),
    ("xgroup_createconsumer", ["x", "group", "consumer"], 1),
    ("xreadgroup", ["group", "consumer", {"x": ">"}], [["x", [["1-1", ["f", "v"]]]]]),
    ("xpending", ["x", "group"], [1, "1-1", "1-1", [["consumer", "1"]]]),
    ("xack", ["x", "group", "1-1"], 1),
    ("xtrim", {"key": "x", "maxlen": 0, "approximate": False}, 1),
    ("xdel", ["x", "1-1"], 0),
    ("xgroup_destroy", ["x", "group"], 1),
    ("script_flush", [], True),
    ("eval", {"script": "return {KEYS[1], ARGV[1]}", "keys": ["k"], "args": ["é"]}, ["k", "é"]),
    ("eval_ro", {"script": "return redis.call('GET', KEYS[1])", "keys": ["none"]}, None),
]  # fmt: skip

GROUPS = {
    "strings": STRINGS,
    "keys": KEYS,
    "hashes": HASHES,
    "lists": LISTS,
    "sets": SETS,
    "sorted sets": SORTED_SETS,
    "others": OTHERS,
} | OPTIONS
ON_THEIR_OWN = {
    "bitfield", "bitfield_ro", "evalsha", "evalsha_ro", "execute", "geopos", "script_exists",
    "script_load", "time", "xackdel", "xdelex",
}  # fmt: skip
ENCODINGS = {"base64": "base64", "plain": None}


def call(client: Any, name: str, arguments: Arguments) -> Any:
    match arguments:
        case list():
            return getattr(client, name)(*arguments)
        case dict():
            return getattr(client, name)(**arguments)
        case positional, named:
            return getattr(client, name)(*positional, **named)


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("steps", GROUPS.values(), ids=GROUPS)
async def test_each_command_gives_what_its_documentation_says(
    upstash: LocalUpstash, steps: list[Step], encoding: Any, anyio_backend_name: str
):
    async with AsyncRedis(upstash.url, upstash.token, encoding, rest_retries=0) as client:
        for name, arguments, expected in steps:
            assert await call(client, name, arguments) == expected, (name, arguments)


@pytest.mark.parametrize("steps", GROUPS.values(), ids=GROUPS)
def test_the_sync_client_gives_the_same(redis: Redis, steps: list[Step]):
    for name, arguments, expected in steps:
        assert call(redis, name, arguments) == expected, (name, arguments)


@pytest.mark.parametrize("kind", ["pipeline", "multi"])
@pytest.mark.parametrize("steps", GROUPS.values(), ids=GROUPS)
def test_in_one_batch_they_give_the_same(redis: Redis, steps: list[Step], kind: str):
    batch = getattr(redis, kind)()
    for name, arguments, _ in steps:
        call(batch, name, arguments)
    assert batch.exec() == [expected for _, _, expected in steps]


def test_no_command_of_the_sdk_is_left_out():
    commands = {name for name in vars(upstash_redis.commands.Commands) if not name.startswith("_")}
    called = {name for steps in GROUPS.values() for name, _, _ in steps}
    assert commands - called == ON_THEIR_OWN


def test_bitfields_are_chained(redis: Redis):
    chain = redis.bitfield("b").set("u8", 0, 255).overflow("SAT").incrby("u8", 0, 10).get("u4", 0)
    assert chain.execute() == [0, 255, 15]
    assert redis.bitfield_ro("b").get("u8", 0).execute() == [255]


def test_entries_are_deleted_with_regard_to_the_groups_that_read_them(redis: Redis):
    def pending(group: str) -> Any:
        return redis.xpending("x", group)[0]

    for number in range(1, 6):
        redis.xadd("x", f"{number}-1", {"n": number})
    for group in ("g", "h"):
        redis.xgroup_create("x", group, "0")
        redis.xreadgroup(group, "c", {"x": ">"}, count=4)
    assert redis.xdelex("x", "1-1", "9-9") == [1, -1]
    assert (pending("g"), pending("h")) == (4, 4)
    assert redis.xdelex("x", "2-1", option="DELREF") == [1]
    assert (pending("g"), pending("h")) == (3, 3)
    assert redis.xdelex("x", "3-1", "5-1", option="ACKED") == [2, 2]
    assert redis.xackdel("x", "g", "3-1", "9-9", option="ACKED") == [2, -1]
    assert redis.xackdel("x", "h", "3-1", option="ACKED") == [1]
    assert redis.xackdel("x", "g", "4-1", option="DELREF") == [1]
    assert redis.xackdel("x", "absent", "5-1") == [-1]
    assert [entry for entry, _ in redis.xrange("x")] == ["5-1"]
    assert redis.xdelex("absent", "1-1", option="ACKED") == [-1]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["XDELEX", "x"], "ERR wrong number of arguments for 'xdelex' command"),
        (["XACKDEL", "x", "g", "IDS", 1], "ERR wrong number of arguments for 'xackdel' command"),
        (["XDELEX", "x", "OFTEN", "IDS", 1, "1-1"], "ERR syntax error"),
        (["XDELEX", "x", "IDS", 2, "1-1"], "ERR The `numids` parameter must match"),
        (["XDELEX", "x", "IDS", 1, "one"], "ERR Invalid stream ID"),
        (["XDELEX", "k", "IDS", 1, "1-1"], "WRONGTYPE "),
    ],
)
def test_a_deletion_of_entries_that_makes_no_sense_is_refused(
    redis: Redis, command: list[Any], error: str
):
    redis.set("k", "text")
    with pytest.raises(UpstashError, match=f"^{error}"):
        redis.execute(command)


def test_a_deletion_of_entries_is_one_command_and_a_write(
    upstash: LocalUpstash, redis: Redis, http: httpx.Client
):
    redis.xadd("x", "1-1", {"n": 1})
    read, after_read = (http.get("/xlen/x").headers["upstash-sync-token"] for _ in range(2))
    upstash.reset_bill()
    redis.xdelex("x", "1-1")
    assert upstash.bill().by_command == {"XDELEX": 1}
    assert read == after_read != http.get("/xlen/x").headers["upstash-sync-token"]


def test_positions_keep_their_doubles(redis: Any):
    redis.geoadd("g", (13.361389, 38.115556, "Palermo"))
    ((longitude, latitude), none) = redis.geopos("g", "Palermo", "nowhere")
    assert (round(longitude, 5), round(latitude, 5), none) == (13.36139, 38.11556, None)
    (found,) = redis.geosearch(
        "g", member="Palermo", radius=1, unit="M", withdist=True, withhash=True, withcoord=True
    )
    assert (found.member, found.distance, found.hash) == ("Palermo", 0.0, 3479099956230698)


def test_scripts_are_loaded_found_and_forgotten(redis: Redis):
    sha = redis.script_load("return ARGV[1]")
    assert redis.evalsha(sha, args=["x"]) == "x"
    assert redis.evalsha_ro(sha, args=["x"]) == "x"
    assert redis.script_exists(sha, "0" * 40) == [True, False]
    assert redis.script_flush("SYNC") is True
    with pytest.raises(UpstashError, match="NOSCRIPT"):
        redis.evalsha(sha)


def test_scan_tells_types_when_it_is_asked_to(redis: Any):
    redis.set("s", 1)
    redis.hset("h", "f", "v")
    cursor, found = redis.execute(["SCAN", 0, "MATCH", "*", "withtype"])
    assert cursor == 0
    assert dict(zip(found[::2], found[1::2], strict=True)) == {"s": "string", "h": "hash"}


def test_bit_operations_that_compare_need_something_to_compare(redis: Redis):
    redis.set("k", "x")
    redis.hset("h", "f", "v")
    for operation in ("DIFF", "DIFF1", "ANDOR"):
        with pytest.raises(
            UpstashError, match=f"BITOP {operation} must be called with at least two"
        ):
            redis.execute(["BITOP", operation, "d", "k"])
    with pytest.raises(UpstashError, match=r"^WRONGTYPE "):
        redis.execute(["BITOP", "ONE", "d", "h"])


def test_the_servers_time_is_now(redis: Redis):
    seconds, microseconds = redis.time()
    assert seconds > 1_700_000_000
    assert 0 <= microseconds < 1_000_000


def test_an_error_is_the_clients_exception(redis: Redis):
    redis.set("k", "text")
    with pytest.raises(UpstashError, match=r"^WRONGTYPE Operation against a key"):
        redis.hget("k", "f")
    with pytest.raises(UpstashError, match=r"Command is not available: 'JSON.GET' is at Upstash"):
        redis.json.get("k")


def test_a_megabyte_and_odd_keys_survive(redis: Any):
    big = "é\x00\n" * 300_000
    key = "k\x00\r\n\"'\\/ ключ 🔑"
    assert redis.set(key, big) is True
    assert redis.get(key) == big
    assert redis.keys("*") == [key]


def test_the_sync_token_is_handed_back_and_forth(upstash: LocalUpstash, redis: Redis):
    redis.set("k", "v")
    first = redis._sync_token
    redis.set("k", "w")
    assert first
    assert redis._sync_token != first
