// @upstash/ratelimit, unmodified, over the local Upstash that the environment names.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Ratelimit } from "@upstash/ratelimit";
import { Redis } from "@upstash/redis";

const redis = Redis.fromEnv({ retry: { retries: 0 } });
const LIMITERS = {
  "fixed window": Ratelimit.fixedWindow(3, "1 h"),
  "sliding window": Ratelimit.slidingWindow(3, "1 h"),
  "token bucket": Ratelimit.tokenBucket(3, "1 h", 3),
};

beforeEach(() => redis.flushall());

for (const [name, limiter] of Object.entries(LIMITERS)) {
  test(`${name}: three are allowed, the fourth is not, and a reset gives all back`, async () => {
    const ratelimit = new Ratelimit({ redis, limiter, ephemeralCache: false });
    const answers = [];
    for (let i = 0; i < 4; i++) answers.push(await ratelimit.limit("me"));
    assert.deepEqual(answers.map((answer) => answer.success), [true, true, true, false]);
    assert.deepEqual(answers.slice(0, 3).map((answer) => answer.remaining), [2, 1, 0]);
    assert.equal((await ratelimit.limit("you")).success, true);
    await ratelimit.resetUsedTokens("me");
    assert.equal((await ratelimit.getRemaining("me")).remaining, 3);
  });

  test(`${name}: a rate above one takes so many at once`, async () => {
    const ratelimit = new Ratelimit({ redis, limiter, ephemeralCache: false });
    assert.equal((await ratelimit.limit("me", { rate: 2 })).remaining, 1);
  });

  test(`${name}: analytics are written where the console reads them`, async () => {
    const ratelimit = new Ratelimit({ redis, limiter, analytics: true, prefix: "app" });
    await (await ratelimit.limit("me")).pending;
    const [key] = await redis.keys("app:events:*");
    assert.deepEqual(await redis.zrange(key, 0, -1), [{ identifier: "me", success: true }]);
  });
}

test("limits can be changed while running", async () => {
  const limiter = Ratelimit.fixedWindow(1, "1 h");
  const ratelimit = new Ratelimit({ redis, limiter, dynamicLimits: true, ephemeralCache: false });
  await ratelimit.setDynamicLimit({ limit: 2 });
  assert.deepEqual(
    [await ratelimit.limit("me"), await ratelimit.limit("me"), await ratelimit.limit("me")].map((a) => a.success),
    [true, true, false],
  );
});

test("several regions agree in the end", async () => {
  const ratelimit = new (await import("@upstash/ratelimit")).MultiRegionRatelimit({
    redis: [redis],
    limiter: (await import("@upstash/ratelimit")).MultiRegionRatelimit.fixedWindow(2, "1 h"),
    ephemeralCache: false,
  });
  const successes = [];
  for (let i = 0; i < 3; i++) {
    const answer = await ratelimit.limit("me");
    await answer.pending;
    successes.push(answer.success);
  }
  assert.deepEqual(successes, [true, true, false]);
});
