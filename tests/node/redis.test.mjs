// @upstash/redis as a client of the local Upstash that the environment names.
// Values, batches, scripts, subscriptions and the client's own settings; the commands one by one are
// in commands.test.mjs.

import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { Redis } from "@upstash/redis";

const redis = Redis.fromEnv({ retry: { retries: 0 } });
const plain = Redis.fromEnv({ retry: { retries: 0 }, responseEncoding: false });

beforeEach(() => redis.flushall());

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

describe("errors", () => {
  test("an error says which command and why", async () => {
    await redis.set("k", "text");
    await assert.rejects(redis.hget("k", "f"), /WRONGTYPE Operation against a key/);
    await assert.rejects(redis.json.get("k"), /Command is not available: 'JSON.GET' is at Upstash/);
    await assert.rejects(redis.exec(["SET", "k"]), {
      name: "UpstashError",
      message: `ERR wrong number of arguments for 'set' command, command was: ["SET","k"]`,
    });
  });

  test("a script that was not loaded is not found, in the words of Redis", async () => {
    const [missing] = await redis.pipeline().evalsha("0".repeat(40), [], []).exec({ keepErrors: true });
    assert.equal(missing.error, "NOSCRIPT No matching script. Please use EVAL.");
  });

  test("what only Upstash has is refused at once", async () => {
    for (const call of [() => redis.arset("a", 0, "v"), () => redis.json.set("k", "$", {}), () => redis.exec(["SEARCH.QUERY", "i", "{}"])]) {
      await assert.rejects(call, /ERR Command is not available: '[A-Z.]+'/);
    }
  });
});

describe("the client's settings", () => {
  const client = (options) => Redis.fromEnv({ retry: { retries: 0 }, ...options });

  test("without automatic deserialization, values stay text", async () => {
    const text = client({ automaticDeserialization: false });
    await text.hset("h", { a: 1, b: { c: 2 } });
    await text.set("k", { a: 1 });
    assert.equal(await text.get("k"), '{"a":1}');
    assert.deepEqual(await text.mget("k", "absent"), ['{"a":1}', null]);
    assert.deepEqual(await text.hvals("h"), ["1", '{"c":2}']);
    assert.deepEqual(await text.lrange("absent", 0, -1), []);
  });

  test("with and without keep-alive, with and without telemetry", async () => {
    for (const options of [{ keepAlive: false }, { keepAlive: true }, { enableTelemetry: false }]) {
      assert.equal(await client(options).echo("hi"), "hi");
    }
  });

  test("latency is logged for commands and batches", async (t) => {
    const lines = [];
    t.mock.method(console, "log", (line) => lines.push(line));
    const logging = client({ latencyLogging: true, enableAutoPipelining: false });
    await logging.set("k", 1);
    await logging.pipeline().get("k").exec();
    assert.match(lines[0], /SET.*ms/s);
    assert.match(lines[1], /PIPELINE.*ms/s);
  });

  test("an abort signal gives its reason as the result", async () => {
    const controller = new AbortController();
    controller.abort("given up");
    const aborted = client({ signal: controller.signal, enableAutoPipelining: false, responseEncoding: false });
    assert.equal(await aborted.get("k"), "given up");
  });

  test("a trailing slash of the address does not matter", async () => {
    const slash = new Redis({ url: `${process.env.UPSTASH_REDIS_REST_URL}/`, token: process.env.UPSTASH_REDIS_REST_TOKEN });
    assert.equal(await slash.pipeline().ping().exec().then(([pong]) => pong), "PONG");
  });

  test("read your writes: the token is renewed by commands, batches and scripts that write", async () => {
    const ryw = client({ enableAutoPipelining: false });
    const writes = {
      command: () => ryw.set("k", 1),
      pipeline: () => ryw.pipeline().set("k", 2).exec(),
      transaction: () => ryw.multi().set("k", 3).set("l", 3).exec(),
      script: () => ryw.createScript("return redis.call('SET', KEYS[1], 4)").exec(["k"], []),
    };
    for (const [name, write] of Object.entries(writes)) {
      const before = ryw.readYourWritesSyncToken;
      await write();
      assert.notEqual(ryw.readYourWritesSyncToken, before, name);
      const after = ryw.readYourWritesSyncToken;
      await ryw.get("k");
      assert.equal(ryw.readYourWritesSyncToken, after, "a read leaves it");
    }
  });

  test("without reading your writes there is no token", async () => {
    const careless = client({ readYourWrites: false });
    await careless.set("k", 1);
    assert.equal(careless.readYourWritesSyncToken, "");
  });

  test("the address and a token may be those of Vercel KV", async (t) => {
    t.mock.method(console, "warn", () => {});
    const { UPSTASH_REDIS_REST_URL: url, UPSTASH_REDIS_REST_TOKEN: token } = process.env;
    Object.assign(process.env, { KV_REST_API_URL: url, KV_REST_API_TOKEN: token });
    delete process.env.UPSTASH_REDIS_REST_URL;
    delete process.env.UPSTASH_REDIS_REST_TOKEN;
    try {
      assert.equal(await Redis.fromEnv().ping(), "PONG");
    } finally {
      Object.assign(process.env, { UPSTASH_REDIS_REST_URL: url, UPSTASH_REDIS_REST_TOKEN: token });
    }
  });
});

describe("bitfields", () => {
  test("are chained, alone and in a batch", async () => {
    const redis = Redis.fromEnv({ enableAutoPipelining: false });
    assert.deepEqual(await redis.bitfield("b").set("u8", "#0", 255).overflow("SAT").incrby("u8", "#0", 10).get("u4", 0).exec(), [0, 255, 15]);
    assert.deepEqual(await redis.bitfield("b").overflow("FAIL").incrby("u8", 0, 1).exec(), [null]);
    const pipeline = redis.pipeline();
    pipeline.bitfield("b").get("u8", 0).exec();
    assert.deepEqual(await pipeline.exec(), [[255]]);
  });
});

describe("blocking reads of a stream", () => {
  test("wait for what is added, and for no longer than they are told", async () => {
    const alone = Redis.fromEnv({ enableAutoPipelining: false });
    await redis.xgroup("x", { type: "CREATE", group: "g", id: "0", options: { MKSTREAM: true } });
    const reading = alone.xread("x", "$", { blockMS: 10_000 });
    const consuming = alone.xreadgroup("g", "c", "x", ">", { blockMS: 10_000 });
    let added = 0;
    const adding = setInterval(() => redis.xadd("x", "*", { n: (added += 1) }), 20);
    try {
      assert.equal((await reading)[0][0], "x");
      assert.deepEqual((await consuming)[0][1][0][1], ["n", 1]);
    } finally {
      clearInterval(adding);
    }
    assert.equal(await alone.xread("absent", "$", { blockMS: 1 }), null);
  });

  test("do not wait in a batch", async () => {
    const batch = () => redis.pipeline().xread("x", "$", { blockMS: 10_000 }).ping();
    assert.deepEqual(await batch().exec(), [null, "PONG"]);
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

  test("commands of one turn travel together, those that write and those that read", async () => {
    const together = Redis.fromEnv({ enableAutoPipelining: true });
    const writes = [together.set("k", 1), together.incr("k"), together.hset("h", { a: 1 })];
    assert.deepEqual(await Promise.all(writes), ["OK", 2, 1]);
    assert.equal(together.pipelineCounter, 1);
    const [value, hash, failed] = await Promise.allSettled([together.get("k"), together.hgetall("h"), together.hget("k", "f")]);
    assert.deepEqual([value.value, hash.value], [2, { a: 1 }]);
    assert.match(failed.reason.message, /^Command failed: WRONGTYPE /);
    assert.equal(together.pipelineCounter, 2);
  });

  test("a transaction with a bad member is discarded as a whole", async () => {
    await assert.rejects(redis.multi().set("k", 1).set("k", undefined).exec(), /null args are not supported/);
    await assert.rejects(redis.multi().set("k", 1).arset("a", 0, "v").exec(), /not available/);
    assert.equal(await redis.get("k"), null);
  });

  test("a thousand commands go in one pipeline", async () => {
    const pipeline = redis.pipeline();
    for (let n = 0; n < 1000; n++) pipeline.incr("n");
    const results = await pipeline.exec();
    assert.deepEqual([results.length, results.at(-1)], [1000, 1000]);
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

  test("that only read have a form of their own", async () => {
    await redis.set("k", 5);
    const script = redis.createScript("return redis.call('GET', KEYS[1])", { readonly: true });
    assert.equal(await script.exec(["k"], []), 5);
    assert.equal(await script.evalRo(["k"], []), 5);
    assert.equal(await script.evalshaRo(["k"], []), 5);
    await assert.rejects(redis.evalRo("return redis.call('SET', KEYS[1], 1)", ["k"], []), /Write commands are not allowed from read-only scripts/);
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

  test("several channels are heard, each by its own listener, until it is left", async () => {
    const subscriber = redis.subscribe(["a", "b"]);
    await next(subscriber, "subscribe");
    while ((await redis.exec(["PUBSUB", "NUMSUB", "a", "b"])).includes(0));
    assert.deepEqual(subscriber.getSubscribedChannels(), ["a", "b"]);
    const arriving = [next(subscriber, "message:a"), next(subscriber, "message:b")];
    await redis.publish("a", 7);
    await redis.publish("b", "plain text, with a comma");
    assert.deepEqual(await Promise.all(arriving), [
      { channel: "a", message: 7 },
      { channel: "b", message: "plain text, with a comma" },
    ]);
    await subscriber.unsubscribe(["a"]);
    while ((await redis.exec(["PUBSUB", "NUMSUB", "a"]))[1] !== 0);
    assert.deepEqual(subscriber.getSubscribedChannels(), ["b"]);
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
