"""The options of commands, step by step, for the Python SDK: calls, and what they give.

Only tables may live here; test_sdk_python runs them.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from unittest.mock import ANY

import pytest

Arguments = list[Any] | dict[str, Any] | tuple[list[Any], dict[str, Any]]
Step = tuple[str, Arguments, object]

LATER = 4_000_000_000
WHEN = dt.datetime.fromtimestamp(LATER, tz=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
PALERMO, CATANIA = (13.361389, 38.115556, "Palermo"), (15.087269, 37.502669, "Catania")


def left(seconds: int) -> object:
    """A lifetime that was just set: the machine may be busy meanwhile."""
    return pytest.approx(seconds, abs=10)


SETTING: list[Step] = [
    ("set", {"key": "k", "value": 1, "ex": 100}, True),
    ("set", {"key": "k", "value": 2, "keepttl": True}, True),
    ("ttl", ["k"], left(100)),
    ("set", {"key": "k", "value": 3, "px": 50_000}, True),
    ("ttl", ["k"], left(50)),
    ("set", {"key": "k", "value": 4, "exat": LATER}, True),
    ("set", {"key": "k", "value": 5, "pxat": LATER * 1000}, True),
    ("set", {"key": "k", "value": 6, "xx": True, "get": True}, "5"),
    ("set", {"key": "absent", "value": 6, "xx": True}, False),
    ("set", {"key": "absent", "value": 6, "xx": True, "get": True}, None),
    ("getex", {"key": "k", "ex": 60}, "6"),
    ("getex", {"key": "k", "px": 60_000}, "6"),
    ("getex", {"key": "k", "exat": LATER}, "6"),
    ("getex", {"key": "k", "pxat": LATER * 1000}, "6"),
    ("getex", ["absent"], None),
    ("getrange", ["absent", 0, -1], ""),
    ("bitcount", ["k", 0, -1], 4),
    ("bitpos", ["k", 1, 0, -1], 2),
    ("bitop", ["NOT", "n", "k"], 1),
    ("bitop", ["OR", "n", "k", "n"], 1),
    ("bitop", ["XOR", "n", "k", "n"], 1),
    ("bitcount", ["n"], 4),
]

EXPIRING: list[Step] = [
    ("set", ["k", 1], True),
    ("expire", {"key": "k", "seconds": MINUTE, "xx": True}, False),
    ("expire", {"key": "k", "seconds": MINUTE, "nx": True}, True),
    ("expire", {"key": "k", "seconds": 30, "lt": True}, True),
    ("pexpire", {"key": "k", "milliseconds": MINUTE, "gt": True}, True),
    ("ttl", ["k"], left(60)),
    ("expireat", {"key": "k", "unix_time_seconds": WHEN, "gt": True}, True),
    ("pexpireat", {"key": "k", "unix_time_milliseconds": WHEN, "lt": True}, False),
    ("expire", ["k", 0], True),
    ("exists", ["k"], 0),
    ("expire", ["k", 10], False),
    ("hset", {"key": "h", "values": {"a": 1, "b": 2}}, 2),
    ("hexpire", {"key": "h", "fields": ["a", "b"], "seconds": MINUTE, "nx": True}, [1, 1]),
    ("hexpire", {"key": "h", "fields": "a", "seconds": 30, "gt": True}, [0]),
    ("hexpire", {"key": "h", "fields": "a", "seconds": 30, "lt": True}, [1]),
    ("hpexpire", {"key": "h", "fields": "a", "milliseconds": MINUTE, "xx": True}, [1]),
    ("httl", ["h", ["a", "b", "absent"]], [left(60), left(60), -2]),
    ("hexpireat", {"key": "h", "fields": "a", "unix_time_seconds": WHEN}, [1]),
    ("hpexpireat", {"key": "h", "fields": ["a"], "unix_time_milliseconds": WHEN}, [1]),
    ("hpexpiretime", ["h", ["a"]], [LATER * 1000]),
    ("hgetex", ["h", "a"], ["1"]),
    ("hgetex", (["h", "a"], {"ex": 10}), ["1"]),
    ("hgetex", (["h", "a"], {"px": 20_000}), ["1"]),
    ("httl", ["h", "a"], [left(20)]),
    ("hgetex", (["h", "a"], {"exat": LATER}), ["1"]),
    ("hgetex", (["h", "a"], {"pxat": LATER * 1000}), ["1"]),
    ("hgetex", (["h", "a"], {"persist": True}), ["1"]),
    ("hpttl", ["h", ["a", "absent"]], [-1, -2]),
    ("hsetex", {"key": "h", "values": {"c": 3, "d": 4}, "px": 30_000}, 1),
    ("hsetex", {"key": "h", "field": "c", "value": 5, "fnx": True}, 0),
    ("hsetex", {"key": "h", "field": "c", "value": 5, "fxx": True, "keepttl": True}, 1),
    ("httl", ["h", ["c", "d"]], [left(30), left(30)]),
    ("hsetex", {"key": "h", "field": "c", "value": 6, "exat": LATER}, 1),
    ("hsetex", {"key": "h", "field": "c", "value": 6, "pxat": LATER * 1000}, 1),
    ("hexpiretime", ["h", "c"], [LATER]),
    ("hexpire", ["h", "d", 0], [2]),
    ("httl", ["absent", "d"], [-2]),
    ("hgetdel", ["h", "a", "b", "absent"], ["1", "2", None]),
    ("hlen", ["h"], 1),
]

RANGES: list[Step] = [
    ("zadd", {"key": "z", "scores": {"a": 1, "b": 2, "c": 3}, "nx": True}, 3),
    ("zadd", {"key": "z", "scores": {"a": 5}, "lt": True, "ch": True}, 0),
    ("zadd", {"key": "z", "scores": {"a": 1.5}, "gt": True, "ch": True}, 1),
    ("zadd", {"key": "z", "scores": {"a": 1}, "nx": True, "incr": True}, None),
    ("zrange", {"key": "z", "start": 0, "stop": 1, "rev": True}, ["c", "b"]),
    ("zrange", {"key": "z", "start": "+inf", "stop": "(1.5", "sortby": "BYSCORE", "rev": True,
                "offset": 0, "count": 1, "withscores": True}, [("c", 3.0)]),
    ("zrange", {"key": "z", "start": "-", "stop": "(b", "sortby": "BYLEX"}, ["a"]),
    ("zrangebyscore", {"key": "z", "min": "-inf", "max": "+inf", "offset": 1, "count": 1}, ["b"]),
    ("zrangebylex", {"key": "z", "min": "-", "max": "+", "offset": 0, "count": 1}, ["a"]),
    ("zrevrangebylex", {"key": "z", "max": "+", "min": "-", "offset": 0, "count": 2}, ["c", "b"]),
    ("zrevrangebyscore", {"key": "z", "max": 3, "min": "(2", "withscores": True}, [("c", 3.0)]),
    ("zrevrange", {"key": "z", "start": 0, "stop": 0, "withscores": True}, [("c", 3.0)]),
    ("zrangestore", {"dst": "y", "src": "z", "min": 2, "max": 3, "sortby": "BYSCORE",
                     "offset": 0, "count": 1}, 1),
    ("zrangestore", {"dst": "y", "src": "z", "min": 0, "max": 0, "rev": True}, 1),
    ("zrange", ["y", 0, -1], ["c"]),
    ("zdiff", {"keys": ["z", "y"], "withscores": True}, [("a", 1.5), ("b", 2.0)]),
    ("zunion", {"keys": ["z", "y"], "aggregate": "MIN"}, ["a", "b", "c"]),
    ("zunionstore", {"destination": "u", "keys": ["z", "y"], "weights": [1, 2],
                     "aggregate": "MAX"}, 3),
    ("zscore", ["u", "c"], 6.0),
    ("zinter", {"keys": ["z", "y"], "weights": [1, 0.5]}, ["c"]),
    ("zinterstore", {"destination": "u", "keys": ["z", "y"], "aggregate": "SUM"}, 1),
    ("zrandmember", {"key": "y", "count": -2, "withscores": True}, [("c", 3.0), ("c", 3.0)]),
    ("zscan", {"key": "z", "cursor": 0, "match": "a*", "count": 10}, (0, [("a", 1.5)])),
    ("zadd", {"key": "z", "scores": {"i": "inf", "j": "-inf"}}, 2),
    ("zscore", ["z", "i"], float("inf")),
    ("zcount", ["z", "-inf", "+inf"], 5),
    ("sadd", ["s", "a", "b"], 2),
    ("sunion", ["s", "absent"], ANY),
    ("sscan", {"key": "s", "cursor": 0, "match": "a*", "count": 10}, (0, ["a"])),
    ("hset", {"key": "h", "values": {"a": 1, "b": 2}}, 2),
    ("hscan", {"key": "h", "cursor": 0, "match": "a*", "count": 10}, (0, {"a": "1"})),
    ("hrandfield", {"key": "h", "count": -3}, ANY),
    ("rpush", ["l", "a", "b", "a"], 3),
    ("lpos", {"key": "l", "element": "a", "rank": -1}, 2),
    ("lpos", {"key": "l", "element": "a", "count": 2, "maxlen": 2}, [0]),
    ("lpos", ["l", "absent"], None),
    ("lmove", ["l", "l", "RIGHT", "LEFT"], "a"),
    ("lmove", ["absent", "l"], None),
]  # fmt: skip

PLACES: list[Step] = [
    ("geoadd", ["g", PALERMO, CATANIA], 2),
    ("geohash", ["g", "Palermo", "absent"], ["sqc8b49rny0", None]),
    ("geosearch", {"key": "g", "longitude": 15, "latitude": 37, "width": 400, "height": 400,
                   "unit": "KM", "order": "ASC", "count": 2}, ["Catania", "Palermo"]),
    ("geosearchstore", {"destination": "d", "source": "g", "member": "Palermo", "radius": 200,
                        "unit": "KM", "storedist": True, "order": "ASC", "count": 2}, 2),
    ("zrange", {"key": "d", "start": 0, "stop": -1, "withscores": True},
     [("Palermo", 0.0), ("Catania", 166.27415156960033)]),
    ("georadius_ro", {"key": "g", "longitude": 15, "latitude": 37, "radius": 200, "unit": "KM",
                      "order": "DESC", "count": 1}, ["Palermo"]),
    ("georadiusbymember", {"key": "g", "member": "Palermo", "radius": 1, "unit": "M"}, ["Palermo"]),
    ("georadius", {"key": "g", "longitude": 15, "latitude": 37, "radius": 200, "unit": "KM",
                   "store": "s"}, 2),
    ("georadiusbymember", {"key": "g", "member": "Palermo", "radius": 200, "unit": "KM",
                           "storedist": "s"}, 2),
]  # fmt: skip

STREAMS: list[Step] = [
    ("xadd", {"key": "x", "id": "*", "data": {"n": 0}, "nomkstream": True}, None),
    ("xadd", ["x", "1-1", {"n": 1, "text": "é"}], "1-1"),
    ("xadd", {"key": "x", "id": "2-1", "data": {"n": 2}, "maxlen": 10}, "2-1"),
    ("xadd", {"key": "x", "id": "3-1", "data": {"n": 3}, "maxlen": 3, "approximate_trim": False},
     "3-1"),
    ("xadd", {"key": "x", "id": "4-1", "data": {"n": 4}, "minid": "2-1",
              "approximate_trim": False}, "4-1"),
    ("xrange", {"key": "x", "start": "-", "end": "+", "count": 1}, [["2-1", ["n", "2"]]]),
    ("xrange", ["x", "(2-1", "3"], [["3-1", ["n", "3"]]]),
    ("xrevrange", {"key": "x", "end": "+", "start": "-", "count": 1}, [["4-1", ["n", "4"]]]),
    ("xread", {"streams": {"x": "2-1", "absent": "0"}, "count": 1}, [["x", [["3-1", ["n", "3"]]]]]),
    ("xgroup_create", {"key": "made", "group": "g", "mkstream": True}, "OK"),
    ("xgroup_create", ["x", "g", "0"], "OK"),
    ("xinfo_groups", ["x"], [["name", "g", "consumers", 0, "pending", 0, "last-delivered-id",
                              "0-0", "entries-read", None, "lag", ANY]]),
    ("xreadgroup", {"group": "g", "consumer": "c", "streams": {"x": ">"}, "count": 2},
     [["x", [["2-1", ["n", "2"]], ["3-1", ["n", "3"]]]]]),
    ("xreadgroup", {"group": "g", "consumer": "c", "streams": {"x": "0"}, "count": 1},
     [["x", [["2-1", ["n", "2"]]]]]),
    ("xreadgroup", {"group": "g", "consumer": "c", "streams": {"x": ">"}, "noack": True},
     [["x", [["4-1", ["n", "4"]]]]]),
    ("xpending", ["x", "g"], [2, "2-1", "3-1", [["c", "2"]]]),
    ("xpending", {"key": "x", "group": "g", "start": "-", "end": "+", "count": 1, "consumer": "c",
                  "idle": 0}, [["2-1", "c", ANY, ANY]]),
    ("xclaim", ["x", "g", "d", 0, "2-1"], [["2-1", ["n", "2"]]]),
    ("xclaim", ["x", "g", "d", 1_000_000, "3-1"], []),
    ("xautoclaim", {"key": "x", "group": "g", "consumer": "e", "min_idle_time": 0, "start": "0-0",
                    "count": 1}, ["3-1", [["2-1", ["n", "2"]]], []]),
    ("xautoclaim", {"key": "x", "group": "g", "consumer": "e", "min_idle_time": 0, "start": "0-0",
                    "justid": True}, ["0-0", ["2-1", "3-1"], []]),
    ("xinfo_consumers", ["x", "g"],
     [["name", name, "pending", count, "idle", ANY, "inactive", ANY]
      for name, count in (("c", 0), ("d", 0), ("e", 2))]),
    ("xgroup_setid", {"key": "x", "group": "g", "id": "0", "entries_read": 0}, "OK"),
    ("xgroup_delconsumer", ["x", "g", "e"], 2),
    ("xtrim", {"key": "x", "minid": "4-1", "approximate": False}, 2),
    ("xtrim", {"key": "x", "maxlen": 100, "limit": 10}, 0),
    ("xgroup_destroy", ["x", "absent"], False),
]  # fmt: skip

OPTIONS = {
    "options of strings": SETTING,
    "options of times to live": EXPIRING,
    "options of ranges": RANGES,
    "options of places": PLACES,
    "options of streams": STREAMS,
}
