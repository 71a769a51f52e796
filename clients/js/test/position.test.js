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

test("at one place the marks say what came later", () => {
  assert.equal(after("e:F-9~zz", "e:F-9~zy"), true);
  assert.equal(after("e:F-9~100", "e:F-9~zz"), true);
  assert.equal(after("e:F-9~zy", "e:F-9~zz"), false);
  assert.equal(after("e:F-9~zz", "e:F-9~zz"), false);
  assert.equal(after("e:F-9", "e:F-9~zz"), true); // nothing is held back any more
  assert.equal(after("e:F-9~zz", "e:F-9"), false);
  assert.equal(after("e:F-9~a~2", "e:F-9~a~1"), true);
  assert.equal(after("e:F-9~a~1", "e:F-9~a"), true);
  assert.equal(after("e:10-1", "e:F-9~zz"), true);
  assert.equal(after("e:F-9*~b", "e:F-9*~a"), true);
  assert.equal(after("e:F-9", "e:F-9*"), true);
  assert.equal(after("e:F-9*", "e:F-9"), true);
  assert.equal(after("e:F-9*", "e:F-9*"), false);
});
