// Every command method of @upstash/redis, one by one, in one pipeline, in one transaction and
// pipelined by itself, over the local Upstash that the environment names.
// Expected values come from the commands' documentation, in the shapes that the SDK gives.

import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { Redis } from "@upstash/redis";

const options = { retry: { retries: 0 }, enableAutoPipelining: false };
const redis = Redis.fromEnv(options);

// Far enough away to be never, in seconds since 1970.
const LATER = 4_000_000_000;
const LIBRARY = "#!lua name=lib\nredis.register_function{function_name='up', callback=function(keys, args)\n"
  + "  return redis.call('INCRBY', keys[1], args[1]) end}\n"
  + "redis.register_function{function_name='peek', flags={'no-writes'}, callback=function(keys)\n"
  + "  return redis.call('GET', keys[1]) end}";
const INCREMENT = "return redis.call('INCR', KEYS[1])";
const INCREMENT_SHA = "61636018f4e6b5817b89791bbed242f93fa089e3";
const PALERMO = { longitude: 13.361389, latitude: 38.115556, member: "Palermo" };
const CATANIA = { longitude: 15.087269, latitude: 37.502669, member: "Catania" };

const any = (check) => ({ check });
const isNumber = any((value) => assert.equal(typeof value, "number"));
const among = (...values) => any((value) => assert.ok(values.includes(value), value));

// Each step: a call, and what it gives.
const GROUPS = {
  strings: [
    [(r) => r.set("k", "v"), "OK"],
    [(r) => r.set("k", "w", { nx: true }), null],
    [(r) => r.set("k", "w", { xx: true, get: true }), "v"],
    [(r) => r.set("new", 1, { nx: true, get: true }), null],
    [(r) => r.set("new", 2, { nx: true, get: true }), 1],
    [(r) => r.set("absent", 1, { xx: true }), null],
    [(r) => r.set("k", 1, { ex: 100 }), "OK"],
    [(r) => r.set("k", 2, { keepTtl: true }), "OK"],
    [(r) => r.ttl("k"), 100],
    [(r) => r.set("k", 3, { px: 50_000 }), "OK"],
    [(r) => r.ttl("k"), 50],
    [(r) => r.set("k", 4, { exat: LATER }), "OK"],
    [(r) => r.set("k", 5, { pxat: LATER * 1000 }), "OK"],
    [(r) => r.get("k"), 5],
    [(r) => r.get("absent"), null],
    [(r) => r.getset("k", "10"), 5],
    [(r) => r.incr("k"), 11],
    [(r) => r.incrby("k", 9), 20],
    [(r) => r.incrbyfloat("k", 0.5), 20.5],
    [(r) => r.set("k", 20), "OK"],
    [(r) => r.decr("k"), 19],
    [(r) => r.decrby("k", 9), 10],
    [(r) => r.append("k", "x"), 3],
    [(r) => r.append("fresh", "ab"), 2],
    [(r) => r.strlen("k"), 3],
    [(r) => r.getrange("k", 1, -1), "0x"],
    [(r) => r.setrange("k", 2, "yz"), 4],
    [(r) => r.getdel("k"), "10yz"],
    [(r) => r.getdel("k"), null],
    [(r) => r.mset({ a: 1, b: { c: [2] }, d: "text" }), "OK"],
    [(r) => r.mget("a", "b", "absent"), [1, { c: [2] }, null]],
    [(r) => r.mget(["a", "d"]), [1, "text"]],
    [(r) => r.msetnx({ a: 5, z: 5 }), 0],
    [(r) => r.msetnx({ y: 5, z: 5 }), 1],
    [(r) => r.setex("t", 100, { x: 1 }), "OK"],
    [(r) => r.psetex("t", 100_000, { x: 2 }), "OK"],
    [(r) => r.setnx("t", "no"), 0],
    [(r) => r.setnx("u", "yes"), 1],
    [(r) => r.getex("t"), { x: 2 }],
    [(r) => r.getex("t", { ex: 60 }), { x: 2 }],
    [(r) => r.ttl("t"), 60],
    [(r) => r.getex("t", { px: 30_000 }), { x: 2 }],
    [(r) => r.getex("t", { exat: LATER }), { x: 2 }],
    [(r) => r.getex("t", { pxat: LATER * 1000 }), { x: 2 }],
    [(r) => r.getex("t", { persist: true }), { x: 2 }],
    [(r) => r.ttl("t"), -1],
    [(r) => r.getex("absent"), null],
  ],
  keys: [
    [(r) => r.mset({ a: 1, b: 2 }), "OK"],
    [(r) => r.exists("a", "b", "absent"), 2],
    [(r) => r.touch("a", "absent"), 1],
    [(r) => r.type("a"), "string"],
    [(r) => r.type("absent"), "none"],
    [(r) => r.expire("a", 100), 1],
    [(r) => r.expire("a", 100, "NX"), 0],
    [(r) => r.expire("a", 50, "GT"), 0],
    [(r) => r.expire("a", 50, "LT"), 1],
    [(r) => r.expire("a", 100, "XX"), 1],
    [(r) => r.ttl("a"), 100],
    [(r) => r.pexpire("a", 50_000), 1],
    [(r) => r.pttl("absent"), -2],
    [(r) => r.pttl("b"), -1],
    [(r) => r.pttl("a"), isNumber],
    [(r) => r.expireat("a", LATER), 1],
    [(r) => r.pexpireat("a", LATER * 1000), 1],
    [(r) => r.persist("a"), 1],
    [(r) => r.persist("absent"), 0],
    [(r) => r.copy("a", "c"), "COPIED"],
    [(r) => r.copy("b", "c"), "NOT_COPIED"],
    [(r) => r.copy("b", "c", { replace: true }), "COPIED"],
    [(r) => r.get("c"), 2],
    [(r) => r.rename("c", "d"), "OK"],
    [(r) => r.renamenx("d", "a"), 0],
    [(r) => r.renamenx("d", "e"), 1],
    [(r) => r.del("b", "absent"), 1],
    [(r) => r.unlink("e", "absent"), 1],
    [(r) => r.keys("*"), ["a"]],
    [(r) => r.scan(0), ["0", ["a"]]],
    [(r) => r.scan("0", { match: "x*", count: 10 }), ["0", []]],
    [(r) => r.scan(0, { type: "hash" }), ["0", []]],
    [(r) => r.scan(0, { withType: true }), ["0", [{ key: "a", type: "string" }]]],
    [(r) => r.randomkey(), "a"],
    [(r) => r.dbsize(), 1],
    [(r) => r.flushdb(), "OK"],
    [(r) => r.flushdb({ async: true }), "OK"],
    [(r) => r.flushall({ async: true }), "OK"],
    [(r) => r.flushall(), "OK"],
    [(r) => r.randomkey(), null],
    [(r) => r.del("absent"), 0],
    [(r) => r.ping(), "PONG"],
    [(r) => r.ping(["hello"]), "hello"],
    [(r) => r.echo("hello"), "hello"],
    [(r) => r.time(), any(([seconds]) => assert.ok(seconds > 1_700_000_000))],
    [(r) => r.publish("channel", { a: 1 }), 0],
    [(r) => r.clientSetinfo("LIB-NAME", "test"), "OK"],
    [(r) => r.clientSetinfo("lib-ver", "1.0"), "OK"],
  ],
  hashes: [
    [(r) => r.hset("h", { a: 1, b: { c: [2] } }), 2],
    [(r) => r.hset("h", { a: 2 }), 0],
    [(r) => r.hsetnx("h", "a", 3), 0],
    [(r) => r.hsetnx("h", "n", 3), 1],
    [(r) => r.hget("h", "b"), { c: [2] }],
    [(r) => r.hget("h", "absent"), null],
    [(r) => r.hget("absent", "a"), null],
    [(r) => r.hgetall("h"), { a: 2, b: { c: [2] }, n: 3 }],
    [(r) => r.hgetall("absent"), null],
    [(r) => r.hset("big", { id: "12345678901234567890" }), 1],
    [(r) => r.hgetall("big"), { id: "12345678901234567890" }],
    [(r) => r.hmget("h", "a", "absent"), { a: 2, absent: null }],
    [(r) => r.hmget("absent", "a"), null],
    [(r) => r.hmset("h", { n: 4 }), "OK"],
    [(r) => r.hexists("h", "n"), 1],
    [(r) => r.hexists("h", "absent"), 0],
    [(r) => r.hdel("h", "n", "absent"), 1],
    [(r) => r.hincrby("h", "a", 3), 5],
    [(r) => r.hincrbyfloat("h", "a", 0.5), 5.5],
    [(r) => r.hkeys("h"), ["a", "b"]],
    [(r) => r.hvals("h"), [5.5, { c: [2] }]],
    [(r) => r.hlen("h"), 2],
    [(r) => r.hstrlen("h", "a"), 3],
    [(r) => r.hscan("h", 0), ["0", ["a", 5.5, "b", { c: [2] }]]],
    [(r) => r.hscan("h", 0, { match: "a", count: 5 }), ["0", ["a", 5.5]]],
    [(r) => r.hrandfield("h"), among("a", "b")],
    [(r) => r.hrandfield("absent"), null],
    [(r) => r.hrandfield("h", 5), ["a", "b"]],
    [(r) => r.hrandfield("h", 5, true), { a: 5.5, b: { c: [2] } }],
    [(r) => r.hrandfield("absent", 1, true), null],
  ],
  "fields that expire": [
    [(r) => r.hset("h", { a: 1, b: 2, c: 3 }), 3],
    [(r) => r.hexpire("h", "a", 100), [1]],
    [(r) => r.hexpire("h", ["a", "absent"], 100, "NX"), [0, -2]],
    [(r) => r.hexpire("h", "a", 50, "GT"), [0]],
    [(r) => r.hexpire("h", "a", 50, "LT"), [1]],
    [(r) => r.hexpire("h", ["a", "b"], 60, "XX"), [1, 0]],
    [(r) => r.hexpire("absent", "a", 60), [-2]],
    [(r) => r.httl("h", ["a", "b", "absent"]), [60, -1, -2]],
    [(r) => r.httl("absent", "a"), [-2]],
    [(r) => r.hpttl("h", "b"), [-1]],
    [(r) => r.hpexpire("h", "b", 50_000), [1]],
    [(r) => r.hpttl("h", "b"), any(([left]) => assert.ok(left > 0 && left <= 50_000))],
    [(r) => r.hexpireat("h", "b", LATER), [1]],
    [(r) => r.hexpiretime("h", "b"), [LATER]],
    [(r) => r.hpexpireat("h", "b", LATER * 1000), [1]],
    [(r) => r.hpexpiretime("h", ["b", "c"]), [LATER * 1000, -1]],
    [(r) => r.hpersist("h", ["b", "c", "absent"]), [1, -1, -2]],
    [(r) => r.hexpire("h", "b", 0), [2]],
    [(r) => r.hexists("h", "b"), 0],
    [(r) => r.hpexpireat("h", "c", 1), [2]],
    [(r) => r.hgetex("h", { ex: 100 }, "a", "absent"), { a: 1, absent: null }],
    [(r) => r.httl("h", "a"), [100]],
    [(r) => r.hgetex("h", { px: 50_000 }, "a"), { a: 1 }],
    [(r) => r.hgetex("h", { exat: LATER }, "a"), { a: 1 }],
    [(r) => r.hgetex("h", { pxat: LATER * 1000 }, "a"), { a: 1 }],
    [(r) => r.hgetex("h", { persist: true }, "a"), { a: 1 }],
    [(r) => r.httl("h", "a"), [-1]],
    [(r) => r.hgetex("absent", { ex: 1 }, "a"), null],
    [(r) => r.hsetex("h", { expiration: { ex: 100 } }, { x: 1, y: { z: 2 } }), 1],
    [(r) => r.httl("h", ["x", "y"]), [100, 100]],
    [(r) => r.hsetex("h", { conditional: "FNX", expiration: { px: 100 } }, { x: 2 }), 0],
    [(r) => r.hsetex("h", { conditional: "fxx", expiration: { keepttl: true } }, { x: 3 }), 1],
    [(r) => r.httl("h", "x"), [100]],
    [(r) => r.hsetex("h", { expiration: { exat: LATER } }, { x: 4 }), 1],
    [(r) => r.hsetex("h", { expiration: { pxat: LATER * 1000 } }, { x: 5 }), 1],
    [(r) => r.hsetex("h", {}, { x: 6 }), 1],
    [(r) => r.httl("h", "x"), [-1]],
    [(r) => r.hgetdel("h", "x", "y", "absent"), { x: 6, y: { z: 2 }, absent: null }],
    [(r) => r.hgetdel("absent", "x"), null],
    [(r) => r.hkeys("h"), ["a"]],
  ],
  lists: [
    [(r) => r.rpush("l", 1, "b", { c: 3 }), 3],
    [(r) => r.lpush("l", "z", "y"), 5],
    [(r) => r.lpushx("absent", "z"), 0],
    [(r) => r.rpushx("absent", "z"), 0],
    [(r) => r.lpushx("l", "x"), 6],
    [(r) => r.rpushx("l", "last"), 7],
    [(r) => r.lrange("l", 0, -1), ["x", "y", "z", 1, "b", { c: 3 }, "last"]],
    [(r) => r.lindex("l", 5), { c: 3 }],
    [(r) => r.lindex("l", 99), null],
    [(r) => r.linsert("l", "before", "b", "a"), 8],
    [(r) => r.linsert("l", "after", "absent", "a"), -1],
    [(r) => r.llen("l"), 8],
    [(r) => r.lpos("l", "b"), 5],
    [(r) => r.lpos("l", "absent"), null],
    [(r) => r.lpos("l", "b", { rank: -1, count: 2, maxLen: 100 }), [5]],
    [(r) => r.lset("l", 0, { w: 1 }), "OK"],
    [(r) => r.lrem("l", 1, "y"), 1],
    [(r) => r.ltrim("l", 0, 4), "OK"],
    [(r) => r.lmove("l", "m", "left", "right"), { w: 1 }],
    [(r) => r.lmove("absent", "m", "left", "right"), null],
    [(r) => r.lmpop(2, ["absent", "l"], "LEFT", 2), ["l", ["z", 1]]],
    [(r) => r.lmpop(1, ["absent"], "RIGHT"), null],
    [(r) => r.lpop("l"), "a"],
    [(r) => r.rpop("l", 5), ["b"]],
    [(r) => r.lpop("l"), null],
    [(r) => r.lpop("l", 2), null],
    [(r) => r.rpop("l"), null],
    [(r) => r.lrange("absent", 0, -1), []],
  ],
  sets: [
    [(r) => r.sadd("s", "a", "b", "c"), 3],
    [(r) => r.sadd("s", "a"), 0],
    [(r) => r.sadd("t", "b", "c", { d: 1 }), 3],
    [(r) => r.scard("s"), 3],
    [(r) => r.sismember("s", "a"), 1],
    [(r) => r.sismember("t", { d: 1 }), 1],
    [(r) => r.smismember("s", ["a", "z"]), [1, 0]],
    [(r) => r.sdiff("s", "t"), ["a"]],
    [(r) => r.sdiffstore("u", "s", "t"), 1],
    [(r) => r.sintercard(["s", "t"]), 2],
    [(r) => r.sintercard(["s", "t"], { limit: 1 }), 1],
    [(r) => r.sinterstore("u", "s", "t"), 2],
    [(r) => r.sunionstore("u", "s", "t"), 4],
    [(r) => r.srem("t", { d: 1 }, "absent"), 1],
    [(r) => r.smove("s", "t", "a"), 1],
    [(r) => r.smove("s", "t", "absent"), 0],
    [(r) => r.srem("s", "b"), 1],
    [(r) => r.smembers("s"), ["c"]],
    [(r) => r.smembers("absent"), []],
    [(r) => r.sinter("s", "t"), ["c"]],
    [(r) => r.sunion("s", "absent"), ["c"]],
    [(r) => r.sscan("s", 0), ["0", ["c"]]],
    [(r) => r.sscan("s", 0, { match: "x*", count: 5 }), ["0", []]],
    [(r) => r.srandmember("s"), "c"],
    [(r) => r.srandmember("s", 5), ["c"]],
    [(r) => r.srandmember("absent"), null],
    [(r) => r.spop("s"), "c"],
    [(r) => r.spop("s"), null],
    [(r) => r.spop("s", 2), []],
  ],
  "sorted sets": [
    [(r) => r.zadd("z", { score: 1, member: "a" }, { score: 2.5, member: { b: 1 } }), 2],
    [(r) => r.zadd("z", { nx: true }, { score: 9, member: "a" }), 0],
    [(r) => r.zadd("z", { xx: true, ch: true }, { score: 0, member: "a" }), 1],
    [(r) => r.zadd("z", { gt: true, ch: true }, { score: 1, member: "a" }), 1],
    [(r) => r.zadd("z", { lt: true, ch: true }, { score: 5, member: "a" }), 0],
    [(r) => r.zadd("z", { incr: true }, { score: 0.5, member: "a" }), 1.5],
    [(r) => r.zadd("z", { incr: true, nx: true }, { score: 1, member: "a" }), null],
    [(r) => r.zadd("z", { score: 3, member: "c" }), 1],
    [(r) => r.zrange("z", 0, -1), ["a", { b: 1 }, "c"]],
    [(r) => r.zrange("z", 0, -1, { withScores: true }), ["a", 1.5, { b: 1 }, 2.5, "c", 3]],
    [(r) => r.zrange("z", 0, 0, { rev: true }), ["c"]],
    [(r) => r.zrange("z", "(1.5", "+inf", { byScore: true }), [{ b: 1 }, "c"]],
    [(r) => r.zrange("z", 10, 0, { byScore: true, rev: true, offset: 1, count: 1 }), [{ b: 1 }]],
    [(r) => r.zscore("z", "a"), 1.5],
    [(r) => r.zscore("z", { b: 1 }), 2.5],
    [(r) => r.zscore("z", "absent"), null],
    [(r) => r.zmscore("z", ["a", "absent"]), [1.5, null]],
    [(r) => r.zincrby("z", 0.5, "a"), 2],
    [(r) => r.zcard("z"), 3],
    [(r) => r.zcount("z", 2, "(3"), 2],
    [(r) => r.zcount("z", "-inf", "+inf"), 3],
    [(r) => r.zrank("z", "c"), 2],
    [(r) => r.zrank("z", "absent"), null],
    [(r) => r.zrevrank("z", "c"), 0],
    [(r) => r.zscan("z", 0), ["0", ["a", 2, { b: 1 }, 2.5, "c", 3]]],
    [(r) => r.zscan("z", 0, { match: "a", count: 5 }), ["0", ["a", 2]]],
    [(r) => r.zadd("y", { score: 1, member: "a" }, { score: 1, member: "d" }), 2],
    [(r) => r.zunion(2, ["z", "y"]), ["d", { b: 1 }, "a", "c"]],
    [(r) => r.zunion(1, "y", { withScores: true, weights: [2], aggregate: "max" }), ["a", 2, "d", 2]],
    [(r) => r.zunionstore("o", 2, ["z", "y"], { weights: [1, 2], aggregate: "min" }), 4],
    [(r) => r.zunionstore("o", 1, "y", { weight: 3 }), 2],
    [(r) => r.zinterstore("o", 2, ["z", "y"], { aggregate: "sum" }), 1],
    [(r) => r.zscore("o", "a"), 3],
    [(r) => r.zdiffstore("o", 2, "y", "z"), 1],
    [(r) => r.zrange("y", "[a", "(d", { byLex: true }), ["a"]],
    [(r) => r.zlexcount("y", "-", "+"), 2],
    [(r) => r.zremrangebylex("y", "[d", "[d"), 1],
    [(r) => r.zremrangebyrank("y", 0, 0), 1],
    [(r) => r.zremrangebyscore("z", "-inf", "(2.5"), 1],
    [(r) => r.zpopmin("z"), [{ b: 1 }, 2.5]],
    [(r) => r.zpopmax("z", 2), ["c", 3]],
    [(r) => r.zpopmax("z"), []],
    [(r) => r.zrem("z", "a"), 0],
    [(r) => r.zadd("z", { score: 1, member: "a" }), 1],
    [(r) => r.zrem("z", "a", "absent"), 1],
  ],
  "bits, sketches and places": [
    [(r) => r.setbit("b", 7, 1), 0],
    [(r) => r.setbit("b", 7, 0), 1],
    [(r) => r.setbit("b", 7, 1), 0],
    [(r) => r.getbit("b", 7), 1],
    [(r) => r.bitcount("b"), 1],
    [(r) => r.bitcount("b", 0, -1), 1],
    [(r) => r.bitpos("b", 1), 7],
    [(r) => r.bitpos("b", 1, 0), 7],
    [(r) => r.bitpos("b", 1, 0, -1), 7],
    [(r) => r.bitop("not", "c", "b"), 1],
    [(r) => r.bitcount("c"), 7],
    [(r) => r.bitop("and", "d", "b", "c"), 1],
    [(r) => r.bitcount("d"), 0],
    [(r) => r.bitop("or", "d", "b", "c"), 1],
    [(r) => r.bitop("xor", "d", "b", "c"), 1],
    [(r) => r.bitop("diff", "e", "d", "b"), 1],
    [(r) => r.bitop("diff1", "e", "b", "d"), 1],
    [(r) => r.bitop("andor", "e", "d", "b"), 1],
    [(r) => r.bitop("one", "e", "d", "b"), 1],
    [(r) => r.pfadd("p", "a", "b"), 1],
    [(r) => r.pfadd("p", "a"), 0],
    [(r) => r.pfcount("p"), 2],
    [(r) => r.pfmerge("q", "p", "absent"), "OK"],
    [(r) => r.geoadd("g", PALERMO, CATANIA), 2],
    [(r) => r.geoadd("g", { nx: true }, PALERMO), 0],
    [(r) => r.geoadd("g", { ch: true }, PALERMO), 0],
    [(r) => r.geoadd("g", { xx: true }, { ...PALERMO, member: "absent" }), 0],
    [(r) => r.geodist("g", "Palermo", "Catania"), 166274.1516],
    [(r) => r.geodist("g", "Palermo", "Catania", "KM"), 166.2742],
    [(r) => r.geodist("g", "Palermo", "absent"), null],
    [(r) => r.geohash("g", "Palermo", "absent"), ["sqc8b49rny0", null]],
    [(r) => r.geohash("g", ["Palermo"]), ["sqc8b49rny0"]],
    [(r) => r.geopos("g", "Palermo"), any(([{ lng, lat }]) => {
      assert.deepEqual([lng.toFixed(5), lat.toFixed(5)], ["13.36139", "38.11556"]);
    })],
    [(r) => r.geosearch("g", { type: "FROMMEMBER", member: "Palermo" },
      { type: "BYRADIUS", radius: 200, radiusType: "KM" }, "DESC"), [{ member: "Catania" }, { member: "Palermo" }]],
    [(r) => r.geosearch("g", { type: "FROMLONLAT", coordinate: { lon: 15, lat: 37 } },
      { type: "BYBOX", rect: { width: 400, height: 400 }, rectType: "KM" }, "ASC",
      { count: { limit: 1 }, withDist: true, withHash: true, withCoord: true }),
      any(([{ member, dist, hash, coord }]) => {
        assert.deepEqual([member, dist, hash], ["Catania", 56.4413, "3479447370796909"]);
        assert.equal(coord.long.toFixed(4), "15.0873");
      })],
    [(r) => r.geosearchstore("n", "g", { type: "FROMMEMBER", member: "Palermo" },
      { type: "BYRADIUS", radius: 200, radiusType: "KM" }, "ASC", { count: { limit: 1 }, storeDist: true }), 1],
    [(r) => r.zrange("n", 0, -1, { withScores: true }), ["Palermo", 0]],
  ],
  streams: [
    [(r) => r.xadd("x", "1-1", { f: "v", n: 2 }), "1-1"],
    [(r) => r.xadd("x", "*", { f: { a: 1 } }, { trim: { type: "MAXLEN", threshold: 10, comparison: "=" } }), any((id) => assert.match(id, /^\d+-\d+$/))],
    [(r) => r.xadd("absent", "*", { f: 1 }, { nomkStream: true }), null],
    [(r) => r.xtrim("x", { strategy: "MAXLEN", threshold: 1, exactness: "=" }), 1],
    [(r) => r.del("x"), 1],
    [(r) => r.xadd("x", "1-1", { f: "v", n: 2 }), "1-1"],
    [(r) => r.xadd("x", "2-1", { o: { a: 1 } }), "2-1"],
    [(r) => r.xadd("x", "3-1", { f: "w" }, { trim: { type: "MINID", threshold: "1-1", comparison: "~", limit: 10 } }), "3-1"],
    [(r) => r.xlen("x"), 3],
    [(r) => r.xlen("absent"), 0],
    [(r) => r.xrange("x", "-", "+"), { "1-1": { f: "v", n: 2 }, "2-1": { o: { a: 1 } }, "3-1": { f: "w" } }],
    [(r) => r.xrange("x", "-", "+", 1), { "1-1": { f: "v", n: 2 } }],
    [(r) => r.xrange("absent", "-", "+"), {}],
    [(r) => r.xrevrange("x", "+", "-", 1), { "3-1": { f: "w" } }],
    [(r) => r.xread("x", "1-1"), [["x", [["2-1", ["o", { a: 1 }]], ["3-1", ["f", "w"]]]]]],
    [(r) => r.xread("x", "0", { count: 1 }), [["x", [["1-1", ["f", "v", "n", 2]]]]]],
    [(r) => r.xread(["x", "absent"], ["2-1", "0"]), [["x", [["3-1", ["f", "w"]]]]]],
    [(r) => r.xread("x", "9-1"), null],
    [(r) => r.xread("x", "2-1", { blockMS: 1000 }), [["x", [["3-1", ["f", "w"]]]]]],
    [(r) => r.xgroup("x", { type: "CREATE", group: "g", id: "0" }), "OK"],
    [(r) => r.xgroup("made", { type: "CREATE", group: "g", id: "$", options: { MKSTREAM: true, ENTRIESREAD: 1 } }), "OK"],
    [(r) => r.xgroup("x", { type: "CREATECONSUMER", group: "g", consumer: "c" }), 1],
    [(r) => r.xreadgroup("g", "c", "x", ">", { count: 2 }), [["x", [["1-1", ["f", "v", "n", 2]], ["2-1", ["o", { a: 1 }]]]]]],
    [(r) => r.xreadgroup("g", "d", ["x"], [">"], { NOACK: true, blockMS: 1000 }), [["x", [["3-1", ["f", "w"]]]]]],
    [(r) => r.xreadgroup("g", "d", "x", ">"), null],
    [(r) => r.xpending("x", "g", "-", "+", 10), any((all) => {
      assert.deepEqual(all.map(([id, consumer, , times]) => [id, consumer, times]), [["1-1", "c", 1], ["2-1", "c", 1]]);
    })],
    [(r) => r.xpending("x", "g", "-", "+", 10, { consumer: "d" }), []],
    [(r) => r.xpending("x", "g", "-", "+", 10, { idleTime: 100_000 }), []],
    [(r) => r.xclaim("x", "g", "d", 0, "1-1"), [["1-1", ["f", "v", "n", 2]]]],
    [(r) => r.xclaim("x", "g", "d", 0, ["1-1"], { justId: true, idleMS: 10, timeMS: 10, retryCount: 5, force: true, lastId: "1-1" }), ["1-1"]],
    [(r) => r.xautoclaim("x", "g", "e", 0, "0-0", { count: 1 }), ["2-1", [["1-1", ["f", "v", "n", 2]]], []]],
    [(r) => r.xautoclaim("x", "g", "e", 0, "0-0", { justId: true }), ["0-0", ["1-1", "2-1"], []]],
    [(r) => r.xinfo("x", { type: "GROUPS" }), [["name", "g", "consumers", 3, "pending", 2, "last-delivered-id", "3-1", "entries-read", 3, "lag", 0]]],
    [(r) => r.xinfo("x", { type: "CONSUMERS", group: "g" }), any((all) => {
      assert.deepEqual(all.map((one) => one.slice(0, 4)), [["name", "c", "pending", 0], ["name", "d", "pending", 0], ["name", "e", "pending", 2]]);
    })],
    [(r) => r.xack("x", "g", "1-1"), 1],
    [(r) => r.xack("x", "g", ["1-1", "9-9"]), 0],
    [(r) => r.xackdel("x", "g", "KEEPREF", "2-1", "9-9"), [1, -1]],
    [(r) => r.xdelex("x", "KEEPREF", "3-1", "9-9"), [1, -1]],
    [(r) => r.xdel("x", "1-1"), 1],
    [(r) => r.xdel("x", ["1-1", "9-9"]), 0],
    [(r) => r.xgroup("x", { type: "SETID", group: "g", id: "$", options: { ENTRIESREAD: 2 } }), "OK"],
    [(r) => r.xgroup("x", { type: "DELCONSUMER", group: "g", consumer: "c" }), 0],
    [(r) => r.xgroup("x", { type: "DESTROY", group: "g" }), 1],
    [(r) => r.xgroup("x", { type: "DESTROY", group: "g" }), 0],
  ],
  "scripts and functions": [
    [(r) => r.eval("return {KEYS[1], ARGV[1], ARGV[2]}", ["k"], ["é", { a: 1 }]), ["k", "é", { a: 1 }]],
    [(r) => r.eval("return 10", [], []), 10],
    [(r) => r.eval("return nil", [], []), null],
    [(r) => r.evalRo("return redis.call('GET', KEYS[1])", ["absent"], []), null],
    [(r) => r.scriptLoad(INCREMENT), INCREMENT_SHA],
    [(r) => r.scriptExists(INCREMENT_SHA, "0".repeat(40)), [1, 0]],
    [(r) => r.evalsha(INCREMENT_SHA, ["n"], []), 1],
    [(r) => r.scriptLoad("return ARGV[1]"), "098e0f0d1448c0a81dafe820f66d460eb09263da"],
    [(r) => r.evalshaRo("098e0f0d1448c0a81dafe820f66d460eb09263da", [], ["x"]), "x"],
    [(r) => r.scriptFlush({ sync: true }), "OK"],
    [(r) => r.scriptFlush({ async: true }), "OK"],
    [(r) => r.scriptFlush(), "OK"],
    [(r) => r.scriptExists(INCREMENT_SHA), [0]],
    [(r) => r.functions.flush(), "OK"],
    [(r) => r.functions.load({ code: LIBRARY }), "lib"],
    [(r) => r.functions.load({ code: LIBRARY, replace: true }), "lib"],
    [(r) => r.functions.call("up", ["f"], [5]), 5],
    [(r) => r.functions.callRo("peek", ["f"]), 5],
    [(r) => r.functions.list({ libraryName: "none*" }), []],
    [(r) => r.functions.list({ libraryName: "lib", withCode: true }), any(([library]) => {
      assert.equal(library.libraryCode, LIBRARY);
      assert.deepEqual(library.functions.map(({ name, flags }) => [name, flags]).sort(), [["peek", ["no-writes"]], ["up", []]]);
    })],
    [(r) => r.functions.stats(), { engines: { LUA: { librariesCount: 1, functionsCount: 2 } } }],
    [(r) => r.functions.delete("lib"), "OK"],
    [(r) => r.functions.list(), []],
  ],
};

function verify(got, expected, label) {
  if (expected?.check) expected.check(got);
  else assert.deepEqual(got, expected, label);
}

beforeEach(() => redis.flushall());

for (const [name, steps] of Object.entries(GROUPS)) {
  describe(name, () => {
    test("one by one", async () => {
      for (const [call, expected] of steps) verify(await call(redis), expected, String(call));
    });

    test("one by one, as plain text and not in base64", async () => {
      const plain = Redis.fromEnv({ ...options, responseEncoding: false });
      for (const [call, expected] of steps) verify(await call(plain), expected, String(call));
    });

    test("in one pipeline", async () => {
      const pipeline = redis.pipeline();
      for (const [call] of steps) call(pipeline);
      assert.equal(pipeline.length(), steps.length);
      const results = await pipeline.exec();
      steps.forEach(([call, expected], index) => verify(results[index], expected, String(call)));
    });

    test("in one transaction", async () => {
      const transaction = redis.multi();
      for (const [call] of steps) call(transaction);
      const results = await transaction.exec({ keepErrors: true });
      steps.forEach(([call, expected], index) => {
        assert.equal(results[index].error, undefined, String(call));
        verify(results[index].result, expected, String(call));
      });
    });

    test("one by one, with the SDK making pipelines by itself", async () => {
      const automatic = Redis.fromEnv({ ...options, enableAutoPipelining: true });
      for (const [call, expected] of steps) verify(await call(automatic), expected, String(call));
    });
  });
}

// What the server cannot do, by docs/local-unsupported.md.
const UNSUPPORTED = /^(json|search|vector|ar[a-z]+)$/;
// What is no command: settings, batches, subscriptions and scripts, which have tests of their own.
const OTHERS = new Set(["client", "opts", "enableTelemetry", "enableAutoPipelining", "use", "addTelemetry",
  "pipeline", "autoPipeline", "multi", "bitfield", "exec", "psubscribe", "subscribe", "autoPipelineExecutor",
  "constructor", "readYourWritesSyncToken", "createScript", "functions"]);

test("no command method of the SDK is left out", () => {
  const called = new Set();
  const recorder = (names) => new Proxy({}, { get: (_, name) => (name === "functions" ? recorder(names) : (...rest) => names.add(name) && rest) });
  for (const steps of Object.values(GROUPS)) for (const [call] of steps) call(recorder(called));
  const methods = new Set([...Object.keys(redis), ...Object.getOwnPropertyNames(Object.getPrototypeOf(redis)),
    ...Object.getOwnPropertyNames(Object.getPrototypeOf(Object.getPrototypeOf(redis))), ...Object.keys(redis.functions)]);
  const left = [...methods].filter((name) => !(called.has(name) || OTHERS.has(name) || UNSUPPORTED.test(name)));
  assert.deepEqual(left, []);
  assert.ok(called.size > 150);
});
