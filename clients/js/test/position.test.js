import assert from "node:assert/strict";
import { test } from "node:test";
import { after } from "../src/position.js";

test("positions are ordered by LSN, then minor; another epoch is always news", () => {
  assert.equal(after("e:10-1", ""), true);
  assert.equal(after("e:10-1", "e:F-9"), true);
  assert.equal(after("e:F-9", "e:10-1"), false);
  assert.equal(after("e:F-10", "e:F-9"), true);
  assert.equal(after("e:F-9", "e:F-9"), false);
  assert.equal(after("e:FFFFFFFFFFFFFFFF-1", "e:FFFFFFFFFFFFFFFE-2"), true);
  assert.equal(after("f:1-0", "e:2-0"), true);
});
