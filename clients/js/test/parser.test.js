import assert from "node:assert/strict";
import { test } from "node:test";
import { Parser } from "../src/index.js";

function parse(...pieces) {
  const got = [];
  const parser = new Parser({
    onEvent: (event) => got.push(event),
    onId: (id) => got.push(`id ${id}`),
    onRetry: (ms) => got.push(`retry ${ms}`),
  });
  for (const piece of pieces) parser.feed(piece);
  return got;
}

const TEXT =
  '\uFEFFretry: 3000\n: hello\n\nid: a:1-0\nevent: rowcast.ready\ndata: {"a":1}\n\nid: a:2-0\n\n' +
  "data:one\r\ndata: two \u2028 \r\nid: a:3-0\r\n\r\ndata\rdata\r\rignored: x\nevent: empty\n\ndata: no end\n";

test("fields, comments, line ends and heartbeats, as the specification has them", () => {
  assert.deepEqual(parse(TEXT), [
    "retry 3000",
    { event: "rowcast.ready", data: '{"a":1}', id: "a:1-0" },
    "id a:2-0",
    { event: "message", data: "one\ntwo \u2028 ", id: "a:3-0" },
    { event: "message", data: "\n", id: "a:3-0" },
  ]);
});

test("wherever the text is cut, the same comes of it", () => {
  const whole = parse(TEXT);
  assert.deepEqual(parse(...TEXT), whole);
  for (let at = 0; at < TEXT.length; at += 1) assert.deepEqual(parse(TEXT.slice(0, at), TEXT.slice(at)), whole);
});

test("an empty id forgets the position", () => {
  assert.deepEqual(parse("id: a:1-0\n\nid\ndata: x\n\n"), ["id a:1-0", { event: "message", data: "x", id: "" }]);
});
