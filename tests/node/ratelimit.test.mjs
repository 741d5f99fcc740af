// @upstash/ratelimit and @upstash/core-analytics, unmodified, over the two local Upstashes that the
// environment names (UPSTASH_…, and SECOND_UPSTASH_… for what spans regions).

import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { Analytics, IpDenyList, MultiRegionRatelimit, Ratelimit } from "@upstash/ratelimit";
import { Redis } from "@upstash/redis";

const options = { retry: { retries: 0 } };
const redis = Redis.fromEnv(options);
const second = new Redis({
  ...options,
  url: process.env.SECOND_UPSTASH_REDIS_REST_URL,
  token: process.env.SECOND_UPSTASH_REDIS_REST_TOKEN,
});
const LIMITERS = {
  "fixed window": Ratelimit.fixedWindow(3, "1 h"),
  "sliding window": Ratelimit.slidingWindow(3, "1 h"),
  "token bucket": Ratelimit.tokenBucket(3, "1 h", 3),
};
const successes = (answers) => answers.map((answer) => answer.success);

async function times(n, call) {
  const answers = [];
  for (let i = 0; i < n; i++) answers.push(await call());
  return answers;
}

beforeEach(() => Promise.all([redis.flushall(), second.flushall()]));

for (const [name, limiter] of Object.entries(LIMITERS)) {
  describe(name, () => {
    const ratelimit = (settings) => new Ratelimit({ redis, limiter, ephemeralCache: false, ...settings });

    test("three are allowed, the fourth is not, and a reset gives all back", async () => {
      const limit = ratelimit();
      const answers = await times(4, () => limit.limit("me"));
      assert.deepEqual(successes(answers), [true, true, true, false]);
      assert.deepEqual(answers.slice(0, 3).map((answer) => answer.remaining), [2, 1, 0]);
      assert.ok(answers.every((answer) => answer.limit === 3 && answer.reset > Date.now()));
      assert.equal((await limit.limit("you")).success, true);
      assert.equal((await limit.getRemaining("me")).remaining, 0);
      await limit.resetUsedTokens("me");
      assert.deepEqual(
        [(await limit.getRemaining("me")).remaining, (await limit.getRemaining("you")).remaining],
        [3, 2],
      );
    });

    test("a rate above one takes so many at once", async () => {
      const limit = ratelimit();
      assert.equal((await limit.limit("me", { rate: 2 })).remaining, 1);
      assert.equal((await limit.limit("me", { rate: 2 })).success, false);
    });

    test("a rate below zero gives back", async () => {
      const limit = ratelimit();
      await times(3, () => limit.limit("me"));
      await limit.limit("me", { rate: -2 });
      assert.equal((await limit.getRemaining("me")).remaining, 2);
    });

    test("many at once are not counted twice or not at all", async () => {
      const limit = ratelimit();
      const answers = await Promise.all(Array.from({ length: 20 }, () => limit.limit("me")));
      assert.equal(successes(answers).filter(Boolean).length, 3);
    });

    test("who was denied is remembered in the process", async () => {
      const limit = ratelimit({ ephemeralCache: new Map() });
      await times(4, () => limit.limit("me"));
      assert.equal((await limit.limit("me")).reason, "cacheBlock");
    });

    test("the limit can be changed while running, and is told", async () => {
      const limit = ratelimit({ dynamicLimits: true });
      await limit.setDynamicLimit({ limit: 1 });
      assert.deepEqual(await limit.getDynamicLimit(), { dynamicLimit: 1 });
      assert.deepEqual(successes(await times(2, () => limit.limit("me"))), [true, false]);
      assert.equal((await limit.getRemaining("you")).limit, 1);
      await limit.setDynamicLimit({ limit: false });
      assert.deepEqual(await limit.getDynamicLimit(), { dynamicLimit: null });
      assert.equal((await limit.getRemaining("you")).limit, 3);
    });

    test("analytics are written where the console reads them", async () => {
      const limit = ratelimit({ analytics: true, prefix: "app" });
      await (await limit.limit("me")).pending;
      const [key] = await redis.keys("app:events:*");
      assert.deepEqual(await redis.zrange(key, 0, -1), [{ identifier: "me", success: true }]);
    });

    test("blocking until ready gives up at its deadline", async () => {
      const limit = ratelimit();
      await times(3, () => limit.limit("me"));
      assert.equal((await limit.blockUntilReady("me", 50)).success, false);
      assert.equal((await limit.blockUntilReady("you", 50)).success, true);
    });
  });
}

describe("time", () => {
  test("blocking until ready waits for the next window", async () => {
    const limit = new Ratelimit({ redis, limiter: Ratelimit.fixedWindow(1, "300 ms"), ephemeralCache: false });
    assert.deepEqual(successes(await times(3, () => limit.blockUntilReady("me", 5000))), [true, true, true]);
  });

  test("a bucket fills again", async () => {
    const limit = new Ratelimit({ redis, limiter: Ratelimit.tokenBucket(5, "50 ms", 5), ephemeralCache: false });
    await times(5, () => limit.limit("me"));
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.equal((await limit.limit("me")).success, true);
  });

  test("what the windows leave behind goes away by itself", async () => {
    for (const limiter of Object.values(LIMITERS)) {
      await new Ratelimit({ redis, limiter, ephemeralCache: false }).limit("me");
    }
    for (const key of await redis.keys("*")) assert.ok((await redis.pttl(key)) > 0, key);
  });
});

describe("cached fixed window", () => {
  const ratelimit = () => new Ratelimit({ redis, limiter: Ratelimit.cachedFixedWindow(3, "1 h"), ephemeralCache: new Map() });

  test("asks first, then counts in the process and tells the database", async () => {
    const limit = ratelimit();
    const answers = await times(4, () => limit.limit("me"));
    await Promise.all(answers.map((answer) => answer.pending));
    assert.deepEqual(successes(answers), [true, true, true, false]);
    const [key] = await redis.keys("*");
    assert.equal(await redis.get(key), 3);
    assert.equal((await ratelimit().getRemaining("me")).remaining, 0);
    await limit.resetUsedTokens("me");
    assert.equal((await limit.getRemaining("me")).remaining, 3);
  });
});

describe("several regions", () => {
  const regions = {
    "fixed window": MultiRegionRatelimit.fixedWindow(3, "1 h"),
    "sliding window": MultiRegionRatelimit.slidingWindow(3, "1 h"),
  };
  for (const [name, limiter] of Object.entries(regions)) {
    test(`${name}: what is used in one is in the end used in all`, async () => {
      const both = new MultiRegionRatelimit({ redis: [redis, second], limiter, ephemeralCache: false });
      const answers = await times(4, async () => {
        const answer = await both.limit("me");
        await answer.pending;
        return answer;
      });
      assert.deepEqual(successes(answers), [true, true, true, false]);
      for (const region of [redis, second]) {
        const alone = new MultiRegionRatelimit({ redis: [region], limiter, ephemeralCache: false });
        assert.equal((await alone.getRemaining("me")).remaining, 0);
      }
      await both.resetUsedTokens("me");
      while ((await redis.dbsize()) + (await second.dbsize()) > 0);
      assert.equal((await both.getRemaining("me")).remaining, 3);
    });
  }
});

describe("deny lists", () => {
  const ratelimit = (prefix, settings) =>
    new Ratelimit({ redis, limiter: Ratelimit.fixedWindow(10, "1 h"), prefix, ephemeralCache: false, enableProtection: true, ...settings });

  test("refuse by address, country, user agent and identifier, and say by which", async () => {
    const limit = ratelimit("denying", { analytics: true });
    await redis.set("denying:ipDenyListStatus", "disabled");
    await redis.sadd("denying:denyList:all", "10.0.0.1", "XX", "bad agent", "bad user");
    for (const [user, request, denied] of [
      ["u1", { ip: "10.0.0.1" }, "10.0.0.1"],
      ["u2", { country: "XX" }, "XX"],
      ["u3", { userAgent: "bad agent" }, "bad agent"],
      ["bad user", {}, "bad user"],
    ]) {
      const answer = await limit.limit(user, request);
      await answer.pending;
      assert.deepEqual([answer.success, answer.reason, answer.deniedValue], [false, "denyList", denied]);
    }
    const good = await limit.limit("u1", { ip: "10.0.0.2", country: "YY" });
    await good.pending;
    assert.equal(good.success, true);
    const [key] = await redis.keys("denying:events:*");
    assert.equal((await redis.zrange(key, 0, -1)).filter((event) => event.success === "denied").length, 4);
  });

  test("of addresses are fetched, kept apart from one's own, and can be switched off", async (t) => {
    t.mock.method(globalThis, "fetch", fetchWith("192.0.2.1\n192.0.2.2\n"));
    await redis.sadd("ips:denyList:all", "own", "192.0.2.2");
    await IpDenyList.updateIpDenyList(redis, "ips", 6);
    assert.deepEqual(await redis.smembers("ips:denyList:ipDenyList"), ["192.0.2.1"]);
    assert.equal(await redis.scard("ips:denyList:all"), 3);
    assert.equal(await redis.get("ips:ipDenyListStatus"), "valid");
    assert.equal((await ratelimit("ips").limit("u", { ip: "192.0.2.1" })).reason, "denyList");
    await IpDenyList.disableIpDenyList(redis, "ips");
    assert.deepEqual((await redis.smembers("ips:denyList:all")).sort(), ["192.0.2.2", "own"]);
    assert.equal(await redis.get("ips:ipDenyListStatus"), "disabled");
  });

  test("of addresses are renewed by the request that finds them expired", async (t) => {
    t.mock.method(globalThis, "fetch", fetchWith("198.51.100.1\n"));
    const answer = await ratelimit("renewed").limit("u", { ip: "198.51.100.2" });
    await answer.pending;
    assert.equal(answer.success, true);
    assert.deepEqual(await redis.smembers("renewed:denyList:all"), ["198.51.100.1"]);
  });
});

// The list of addresses comes from elsewhere on the web; all else goes to the server.
function fetchWith(list) {
  const real = globalThis.fetch;
  return (url, init) => (String(url).includes("ipsum") ? Promise.resolve(new Response(list)) : real(url, init));
}

describe("analytics", () => {
  test("are read back by hour, by name, and by who was denied most", async () => {
    const analytics = new Analytics({ redis, prefix: "seen" });
    const time = Date.now();
    for (const [identifier, success, count] of [["a", true, 3], ["b", false, 2], ["c", "denied", 1]]) {
      await Promise.all(Array.from({ length: count }, () => analytics.record({ identifier, success, time })));
    }
    assert.deepEqual(await analytics.getUsage(time - 2 * 3600_000), {
      a: { success: 3, blocked: 0 },
      b: { success: 0, blocked: 2 },
      c: { success: 1, blocked: 0 },
    });
    assert.deepEqual(await analytics.getMostAllowedBlocked(2, 5), {
      allowed: [{ identifier: "a", count: 3 }],
      ratelimited: [{ identifier: "b", count: 2 }],
      denied: [{ identifier: "c", count: 1 }],
    });
    const [hour] = await analytics.getUsageOverTime(1, "identifier");
    assert.deepEqual(hour.identifier, { a: 3, b: 2, c: 1 });
    assert.equal((await analytics.series("success", time - 3 * 3600_000)).length, 3);
  });
});

test("a database that does not answer in time lets the request pass", async () => {
  const slow = { eval: () => new Promise(() => {}), evalsha: () => new Promise(() => {}) };
  const limit = new Ratelimit({ redis: slow, limiter: Ratelimit.fixedWindow(1, "1 h"), timeout: 20, ephemeralCache: false });
  const answer = await limit.limit("me");
  assert.deepEqual([answer.success, answer.reason], [true, "timeout"]);
});

test("scripts that were forgotten are sent again", async () => {
  const limit = new Ratelimit({ redis, limiter: Ratelimit.slidingWindow(3, "1 h"), ephemeralCache: false });
  await limit.limit("me");
  await redis.scriptFlush();
  assert.equal((await limit.limit("me")).remaining, 1);
});
