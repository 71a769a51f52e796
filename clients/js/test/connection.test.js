// Against a real HTTP server in this process, which says what the test wants it to say.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { afterEach, test } from "node:test";
import { connect } from "../src/index.js";

let ends = [];
afterEach(() => {
  for (const end of ends.reverse()) end();
  ends = [];
});

/** `answers`: one function per request, (response, request) → void; the last one answers all that follow. */
async function serve(...answers) {
  const requests = [];
  const server = createServer((request, response) => {
    const answer = answers[Math.min(requests.length, answers.length - 1)];
    requests.push(request);
    answer(response, request);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  ends.push(() => (server.closeAllConnections(), server.close()));
  return { url: `http://127.0.0.1:${server.address().port}`, requests };
}

const stream = (text, end = false) => (response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write(text);
  if (end) response.end();
};
const status = (code, headers = {}) => (response) => {
  response.writeHead(code, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify({ status: code, error: "words" }));
};
const READY = 'retry: 20\nid: e:1-0\nevent: rowcast.ready\ndata: {"topics":[]}\n\n';

function open(url, options) {
  const live = connect(url, options);
  ends.push(() => live.close());
  return live;
}
const next = (live, name, test = () => true) =>
  new Promise((resolve) => {
    const end = live.on(name, (message) => test(message) && (end(), resolve(message)));
  });

test("it resumes from the last position, heartbeats included", async () => {
  const { url, requests } = await serve(stream(READY + 'data: {"n":1}\nid: e:2-0\n\nid: e:3-0\n\n', true), stream(READY));
  const live = open(url, { token: "t", topics: ["a", "b"], snapshot: true });
  await next(live, "rowcast.ready");
  await next(live, "rowcast.ready");
  assert.equal(requests[0].url, "/events?topics=a%2Cb&snapshot=1");
  assert.equal(requests[0].headers.authorization, "Bearer t");
  assert.equal(requests[0].headers["last-event-id"], undefined);
  assert.equal(requests[1].headers["last-event-id"], "e:3-0");
});

test("a position that was forgotten is not sent", async () => {
  const { url, requests } = await serve(
    stream('retry: 20\nid: e:1-0\n\nid:\nevent: rowcast.ready\ndata: {"topics":[],"snapshot":["a"]}\n\n', true),
    stream(READY),
  );
  const live = open(url, {});
  await next(live, "rowcast.ready");
  await next(live, "rowcast.ready");
  assert.equal(requests[1].headers["last-event-id"], undefined);
});

test("a token that is refused is asked for anew, once", async () => {
  const { url, requests } = await serve(status(401), stream(READY));
  const asked = [];
  const live = open(url, {
    token: ({ expired }) => {
      asked.push(expired);
      return expired ? "new" : "old";
    },
  });
  await next(live, "rowcast.ready");
  assert.deepEqual(asked, [false, true]);
  assert.equal(requests[1].headers.authorization, "Bearer new");
});

test("refused for good it says so, and stops", async () => {
  for (const code of [400, 403, 404]) {
    const { url } = await serve(status(code));
    const { detail } = await next(open(url, {}), "state", ({ state }) => state === "closed");
    assert.equal(detail, `${code}: words`);
  }
  const { url, requests } = await serve(status(401));
  await next(open(url, { token: () => "t" }), "state", ({ state }) => state === "closed");
  assert.equal(requests.length, 2);
});

test("a server that is away, or says not now, is tried again", async () => {
  const { url, requests } = await serve(
    stream('retry: 10\nevent: rowcast.bye\ndata: {"reason":"busy"}\n\n', true),
    (response) => response.destroy(),
    status(503),
    stream(READY),
  );
  await next(open(url, {}), "rowcast.ready");
  assert.equal(requests.length, 4);
});

test("a stream whose token expired comes back with another", async () => {
  const { url, requests } = await serve(
    stream(READY + 'event: rowcast.bye\ndata: {"reason":"token_expired"}\n\n', true),
    stream(READY),
  );
  const live = open(url, { token: ({ expired }) => (expired ? "new" : "old") });
  await next(live, "rowcast.bye");
  await next(live, "rowcast.ready");
  assert.equal(requests[1].headers.authorization, "Bearer new");
});

test("a connection on which nothing comes is given up", async () => {
  const { url, requests } = await serve(stream(READY), stream(READY));
  const live = open(url, { silence: 50 });
  await next(live, "rowcast.ready");
  await next(live, "rowcast.ready");
  assert.equal(requests.length >= 2, true);
});

test("text that is no JSON is given as it is; a handler that throws does not stop the others", async () => {
  const errors = [];
  globalThis.reportError = (error) => errors.push(error);
  const { url } = await serve(stream(READY + "data: plain\n\n"));
  const live = open(url, {});
  live.on("message", () => {
    throw new Error("mine");
  });
  const { data } = await next(live, "message");
  assert.equal(data, "plain");
  assert.equal(errors[0].message, "mine");
});

/** Give this process the locks of a browser. */
function locks(request) {
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: { locks: { request } }, configurable: true });
  ends.push(() => {
    delete globalThis.navigator;
    if (before) Object.defineProperty(globalThis, "navigator", before);
  });
}

test("the other tabs are told what has no id of its own, and all that is held back at one place", async () => {
  let last = Promise.resolve();
  locks((_, { signal }, have) => (last = last.then(() => signal.aborted || have())));
  const answers = [];
  const { url } = await serve((response) => {
    stream(READY)(response);
    answers.push(response);
  });
  const leader = open(url, { shared: true });
  await next(leader, "rowcast.ready");
  const other = open(url, { shared: true });
  await next(other, "rowcast.ready");
  const told = [];
  other.on("message", ({ data }) => told.push(data.n));
  const end = next(other, "message", ({ data }) => data.n === 5);
  answers[0].write('data: {"n":1}\n\nid: e:2-0~a\ndata: {"n":2}\n\nid: e:2-0~b\ndata: {"n":3}\n\n');
  answers[0].write('data: {"n":4}\n\nid: e:3-0\ndata: {"n":5}\n\n');
  await end;
  assert.deepEqual(told, [1, 2, 3, 4, 5]);
});

test("a new leader that goes on from an earlier position tells the others nothing twice", async () => {
  locks(() => new Promise(() => {}));
  const other = open("http://127.0.0.1:9", { shared: true });
  const leader = new BroadcastChannel(other.channel.name);
  ends.push(() => leader.close());
  const told = [];
  other.on("message", ({ data }) => told.push(data));
  let from = "";
  const tell = (event, id, data = {}) => {
    leader.postMessage({ kind: "event", message: { event, id, data, from } });
    from = id;
  };
  tell("rowcast.ready", "e:1-0", { topics: [] });
  for (const number of [2, 3, 4]) tell("message", `e:${number}-0`, number);
  // The new one has heard as far as 2.
  from = "e:2-0";
  tell("rowcast.bye", "e:2-0");
  tell("rowcast.ready", "e:2-0", { topics: [] });
  tell("message", "e:3-0", 3);
  leader.postMessage({ kind: "id", id: "e:3-1" });
  tell("message", "e:4-0", 4);
  const end = next(other, "message", ({ data }) => data === 5);
  tell("message", "e:5-0", 5);
  await end;
  assert.deepEqual(told, [2, 3, 4, 5]);
  assert.equal(other.lastEventId, "e:5-0");
});
