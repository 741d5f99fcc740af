// @upstash/redis as a client of the local Upstash that the environment names.
// Expected values come from the commands' documentation at Redis, in the shapes that the SDK gives.

import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { Redis } from "@upstash/redis";

const redis = Redis.fromEnv({ retry: { retries: 0 } });
const plain = Redis.fromEnv({ retry: { retries: 0 }, responseEncoding: false });

beforeEach(() => redis.flushall());

// Each step: a name for the reader, a call, and what it gives.
async function follow(steps) {
  for (const [call, expected] of steps) {
    assert.deepEqual(await call(redis), expected, String(call));
  }
}

describe("values", () => {
  test("JSON goes in and comes out", async () => {
    for (const value of ["text", "ünïcode 🔑", { a: [1, null, { b: true }] }, [1, "2"], 7, 1.5, true, null]) {
      assert.equal(await redis.set("k", value), "OK");
      assert.deepEqual(await redis.get("k"), value);
      assert.deepEqual(await plain.get("k"), value);
    }
    assert.equal(await redis.get("absent"), null);
  });

  test("a number too large for JavaScript stays text", async () => {
    await redis.set("k", "12345678901234567890");
    assert.equal(await redis.get("k"), "12345678901234567890");
  });

  test("the value OK is a value like others", async () => {
    await redis.set("k", "OK");
    assert.equal(await redis.get("k"), "OK");
    assert.deepEqual(await redis.mget("k", "k"), ["OK", "OK"]);
    assert.deepEqual(await redis.eval("return {'OK', {'OK'}}", [], []), ["OK", ["OK"]]);
  });

  test("undefined is refused", async () => {
    await assert.rejects(redis.set("k", undefined), /null args are not supported/);
  });

  test("half a megabyte survives", async () => {
    const value = "é\u0000\n".repeat(100_000);
    await redis.set("k", value);
    assert.equal(await redis.get("k"), value);
  });
});

describe("commands", () => {
  test("strings and keys", () =>
    follow([
      [(r) => r.set("k", 1, { ex: 100, nx: true }), "OK"],
      [(r) => r.set("k", 2, { nx: true }), null],
      [(r) => r.set("k", 2, { get: true, keepTtl: true }), 1],
      [(r) => r.ttl("k"), 100],
      [(r) => r.incrby("k", 8), 10],
      [(r) => r.incrbyfloat("k", 0.5), 10.5],
      [(r) => r.append("k", "x"), 5],
      [(r) => r.getrange("k", 0, 1), 10],
      [(r) => r.getex("k", { persist: true }), "10.5x"],
      [(r) => r.expire("k", 50, "NX"), 1],
      [(r) => r.pexpire("k", 50_000, "XX"), 1],
      [(r) => r.persist("k"), 1],
      [(r) => r.mset({ a: 1, b: { c: 2 } }), "OK"],
      [(r) => r.mget("a", "b", "z"), [1, { c: 2 }, null]],
      [(r) => r.copy("a", "d"), "COPIED"],
      [(r) => r.rename("d", "e"), "OK"],
      [(r) => r.exists("a", "e", "z"), 2],
      [(r) => r.type("a"), "string"],
      [(r) => r.getdel("e"), 1],
      [(r) => r.del("a", "b", "z"), 2],
      [(r) => r.dbsize(), 1],
      [(r) => r.scan(0), ["0", ["k"]]],
      [(r) => r.scan(0, { withType: true }), ["0", [{ key: "k", type: "string" }]]],
      [(r) => r.ping(), "PONG"],
      [(r) => r.echo("hi"), "hi"],
    ]));

  test("hashes and the time that fields have", () =>
    follow([
      [(r) => r.hset("h", { a: 1, b: { c: [2] } }), 2],
      [(r) => r.hgetall("h"), { a: 1, b: { c: [2] } }],
      [(r) => r.hgetall("none"), null],
      [(r) => r.hmget("h", "a", "z"), { a: 1, z: null }],
      [(r) => r.hincrby("h", "a", 2), 3],
      [(r) => r.hscan("h", 0, { match: "a" }), ["0", ["a", 3]]],
      [(r) => r.hexpire("h", ["a", "z"], 100), [1, -2]],
      [(r) => r.httl("h", "a"), [100]],
      [(r) => r.hpersist("h", "a"), [1]],
      [(r) => r.hgetdel("h", "a"), { a: 3 }],
      [(r) => r.hlen("h"), 1],
    ]));

  test("lists, sets and sorted sets", () =>
    follow([
      [(r) => r.rpush("l", 1, "b", { c: 3 }), 3],
      [(r) => r.lrange("l", 0, -1), [1, "b", { c: 3 }]],
      [(r) => r.lpop("l", 2), [1, "b"]],
      [(r) => r.sadd("s", "a", "b"), 2],
      [(r) => r.smismember("s", ["a", "z"]), [1, 0]],
      [(r) => r.sintercard(["s", "s"]), 2],
      [(r) => r.zadd("z", { score: 1, member: "a" }, { score: 2.5, member: "b" }), 2],
      [(r) => r.zrange("z", 0, -1, { withScores: true }), ["a", 1, "b", 2.5]],
      [(r) => r.zrange("z", 2, "+inf", { byScore: true }), ["b"]],
      [(r) => r.zmscore("z", ["a", "x"]), [1, null]],
      [(r) => r.zincrby("z", 0.5, "a"), 1.5],
      [(r) => r.zpopmax("z"), ["b", 2.5]],
    ]));

  test("streams, bits and places", () =>
    follow([
      [(r) => r.xadd("x", "1-1", { f: "v", n: 2 }), "1-1"],
      [(r) => r.xrange("x", "-", "+"), { "1-1": { f: "v", n: 2 } }],
      [(r) => r.xgroup("x", { type: "CREATE", group: "g", id: "0" }), "OK"],
      [(r) => r.xreadgroup("g", "c", "x", ">"), [["x", [["1-1", ["f", "v", "n", 2]]]]]],
      [(r) => r.xack("x", "g", "1-1"), 1],
      [(r) => r.setbit("b", 7, 1), 0],
      [(r) => r.bitop("not", "c", "b"), 1],
      [(r) => r.bitcount("c", 0, -1), 7],
      [(r) => r.geoadd("g", { longitude: 13.361389, latitude: 38.115556, member: "Palermo" }), 1],
      [(r) => r.geodist("g", "Palermo", "none"), null],
      [(r) => r.geohash("g", "Palermo"), ["sqc8b49rny0"]],
    ]));

  test("an error says which command and why", async () => {
    await redis.set("k", "text");
    await assert.rejects(redis.hget("k", "f"), /WRONGTYPE Operation against a key/);
    await assert.rejects(redis.json.get("k"), /unknown command 'JSON.GET'/);
  });
});

describe("batches", () => {
  test("a pipeline and a transaction give results in order", async () => {
    for (const batch of [redis.pipeline(), redis.multi()]) {
      assert.deepEqual(await batch.set("k", { a: 1 }).get("k").incr("n").exec(), ["OK", { a: 1 }, 1]);
      await redis.del("n");
    }
  });

  test("a failing member is told by its place", async () => {
    await redis.set("k", "text");
    await assert.rejects(redis.pipeline().get("k").incr("k").exec(), /Command 2 \[ incr \] failed/);
    const results = await redis.multi().incr("k").get("k").exec({ keepErrors: true });
    assert.match(results[0].error, /not an integer/);
    assert.equal(results[1].result, "text");
  });

  test("commands of one turn travel together", async () => {
    const together = Redis.fromEnv({ enableAutoPipelining: true });
    const results = await Promise.all([together.set("k", 1), together.incr("k"), together.get("k")]);
    assert.deepEqual(results, ["OK", 2, 2]);
  });
});

describe("scripts", () => {
  test("are found by the SHA that the SDK reckons itself", async () => {
    const script = redis.createScript("#!lua flags=allow-key-locking\nreturn redis.call('INCR', KEYS[1])");
    assert.equal(await script.exec(["n"], []), 1);
    assert.equal(await script.evalsha(["n"], []), 2);
    await redis.scriptFlush();
    await assert.rejects(script.evalsha(["n"], []), /NOSCRIPT/);
    assert.equal(await script.exec(["n"], []), 3);
  });

  test("may not touch undeclared keys when they lock by key", async () => {
    const script = "#!lua flags=allow-key-locking\nreturn redis.call('GET', 'other')";
    await assert.rejects(redis.eval(script, ["k"], []), /Dynamic keys are not allowed.*Key was: other/);
  });

  test("libraries of functions are loaded, called and listed", async () => {
    const code = "#!lua name=lib\nredis.register_function('f', function(keys) return redis.call('INCR', keys[1]) end)";
    assert.equal(await redis.functions.load({ code, replace: true }), "lib");
    assert.equal(await redis.functions.call("f", ["n"]), 1);
    const [library] = await redis.functions.list({ withCode: true });
    assert.equal(library.libraryCode, code);
    assert.equal(await redis.functions.flush(), "OK");
  });
});

describe("subscriptions", () => {
  // The next event of a kind, or a failure after five seconds.
  const next = (subscriber, kind) =>
    new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no ${kind} came`)), 5000);
      subscriber.on(kind, (event) => {
        clearTimeout(timer);
        resolve(event);
      });
    });

  test("messages of a channel arrive", async () => {
    const subscriber = redis.subscribe(["chat"]);
    assert.equal(await next(subscriber, "subscribe"), 1);
    const arriving = next(subscriber, "message");
    assert.equal(await redis.publish("chat", { hello: "wörld" }), 1);
    assert.deepEqual(await arriving, { channel: "chat", message: { hello: "wörld" } });
    await subscriber.unsubscribe();
  });

  test("messages of a pattern arrive with their channel", async () => {
    const subscriber = redis.psubscribe(["news.*"]);
    assert.equal(await next(subscriber, "psubscribe"), 1);
    const arriving = next(subscriber, "pmessage");
    await redis.publish("news.sport", { goals: 2 });
    assert.deepEqual(await arriving, { pattern: "news.*", channel: "news.sport", message: { goals: 2 } });
    await subscriber.unsubscribe();
  });
});

describe("credentials", () => {
  test("a wrong token is an error and not a retry", async () => {
    const stranger = new Redis({ url: process.env.UPSTASH_REDIS_REST_URL, token: "wrong", retry: false });
    await assert.rejects(stranger.get("k"), /WRONGPASS/);
  });

  test("the sync token changes with every write", async () => {
    await redis.set("k", 1);
    const first = redis.client.upstashSyncToken;
    await redis.set("k", 2);
    assert.notEqual(redis.client.upstashSyncToken, first);
  });
});
