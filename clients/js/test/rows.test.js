import assert from "node:assert/strict";
import { test } from "node:test";
import { Rows } from "../src/index.js";

const change = (action, record, topic = "t") => ({ event: "message", data: { topic, action, record } });
const page = (rows, more = {}) => ({
  event: "rowcast.snapshot",
  data: { topic: "t", rows, key: ["k"], first: true, last: true, ...more },
});

test("pages, then changes", () => {
  const rows = new Rows();
  rows.take(page([{ k: 1, v: "a" }], { last: false }));
  assert.deepEqual(rows.get(), []);
  rows.take(page([{ k: 2, v: "b" }], { first: false }));
  assert.deepEqual(rows.get(), [{ k: 1, v: "a" }, { k: 2, v: "b" }]);
  rows.take(change("update", { k: 1, v: "c" }));
  rows.take(change("insert", { k: 3, v: "d" }));
  rows.take(change("delete", { k: 2 }));
  assert.deepEqual(rows.get(), [{ k: 1, v: "c" }, { k: 3, v: "d" }]);
  rows.take(page([{ k: 9 }]));
  assert.deepEqual(rows.get(), [{ k: 9 }]);
});

test("the same array until something changes", () => {
  const rows = new Rows();
  rows.take(change("insert", { id: 1 }));
  const before = rows.get();
  assert.equal(rows.get(), before);
  rows.take({ event: "rowcast.bye", data: { reason: "draining" } });
  assert.equal(rows.get(), before);
  rows.take(change("insert", { id: 2 }));
  assert.notEqual(rows.get(), before);
});

test("listeners are called once for all that comes together", async () => {
  const rows = new Rows();
  let calls = 0;
  const end = rows.subscribe(() => (calls += 1));
  for (let id = 0; id < 10; id += 1) rows.take(change("insert", { id }));
  await null;
  assert.equal(calls, 1);
  end();
  rows.take(change("insert", { id: 10 }));
  await null;
  assert.equal(calls, 1);
});

test("topics that are lost take their rows with them; one topic does not touch another's", () => {
  const all = new Rows();
  const one = new Rows({ topic: "a:1" });
  for (const rows of [all, one]) {
    rows.take(change("insert", { id: 1 }, "a:1"));
    rows.take(change("insert", { id: 2 }, "a:2"));
    rows.take(change("insert", { id: 3 }, "user:u"));
  }
  assert.equal(all.get().length, 3);
  assert.deepEqual(one.get(), [{ id: 1 }]);
  all.take({ event: "rowcast.subscriptions", data: { topics: ["a:2"], added: [], removed: ["a:1"] } });
  assert.deepEqual(all.get(), [{ id: 2 }, { id: 3 }]);
  all.take(change("truncate", undefined, "a:*"));
  assert.deepEqual(all.get(), [{ id: 3 }]);
});

test("an update without a large value keeps the one that is there", () => {
  const rows = new Rows();
  rows.take(change("insert", { id: 1, text: "long", n: 1 }));
  rows.take(change("update", { id: 1, n: 2 }));
  assert.deepEqual(rows.get(), [{ id: 1, text: "long", n: 2 }]);
});

test("an update of the key moves the row", () => {
  const rows = new Rows();
  rows.take(change("insert", { id: 1, text: "long", n: 1 }));
  const moved = { topic: "t", action: "update", record: { id: 2, n: 1 }, changes: { id: 1 } };
  rows.take({ event: "message", data: moved });
  assert.deepEqual(rows.get(), [{ id: 2, text: "long", n: 1 }]);
});

test("a reset without rows says that they are stale, until they are replaced", () => {
  const rows = new Rows({ topic: "t" });
  rows.take({ event: "rowcast.reset", data: { reason: "position_expired", topics: ["t"] } });
  assert.equal(rows.stale, true);
  rows.replace([{ id: 7 }]);
  assert.equal(rows.stale, false);
  assert.deepEqual(rows.get(), [{ id: 7 }]);
});

test("what somebody published is no change because it has an action", () => {
  const rows = new Rows();
  for (const data of [
    { action: "joined" },
    { action: "joined", topic: "t" },
    { action: "insert", topic: "t", record: null },
    { action: "insert", topic: 5, record: { id: 1 } },
    { action: "truncate" },
    [{ action: "insert" }],
    "action",
    null,
  ])
    rows.take({ event: "message", data });
  assert.deepEqual(rows.get(), []);
});
