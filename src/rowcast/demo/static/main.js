// Joins the parts: who is signed in, the stream, the cards, and what the user does.

import { Card, handCard } from "./board.js";
import { now, parse } from "./clock.js";
import { openDoor, showPerson } from "./door.js";
import { Ledger } from "./ledger.js";
import { Meter, milliseconds } from "./meter.js";
import { Picture } from "./picture.js";
import * as session from "./session.js";
import { tell } from "./story.js";
import { Stream } from "./stream.js";
import { Switches } from "./switches.js";
import { Tape } from "./tape.js";

const TOPIC = "finance:";
const byId = (id) => document.getElementById(id);
const sentence = (parts) => new Intl.ListFormat("en").format(parts);

const facts = await session.about();
const picture = new Picture();
const meter = new Meter();
const tape = new Tape();
const cards = new Map();
const switches = new Switches(cards, {
  wrote(replica) {
    picture.wrote(replica);
    tried("flip");
  },
  done({ symbol, on, at, replica, inForce, first }) {
    tell([`${symbol} ${on ? "on" : "off"}: `], `written by replica ${replica}, in force on replica ${holder} after `
      + `${milliseconds(inForce - at)} ms on the same stream`
      + (on ? `; its next commit was here ${milliseconds(first - at)} ms after the click.` : ". Nothing more of it is sent."));
  },
  failed: (problem) => tell(["Not switched: "], `${problem.message}.`),
});

let user = null;
let stream = null;
const ledger = new Ledger();
let holder = null; // the replica that holds the stream
let readyAt = 0; // rows committed before this were caught up, not live
let broken = null; // since when the stream is away: { at, killed, rows }

// Rows: everything that arrived since the last frame is drawn in one go, and timed when the frame is out.
let undrawn = [];
const frames = []; // the rows of each frame that was drawn and may not be painted yet
const painted = new MessageChannel();
painted.port1.onmessage = () => {
  const time = now();
  for (const { card, commit, at, caughtUp } of frames.shift()) {
    if (caughtUp) {
      card.arrived(null);
      continue;
    }
    meter.take(at - commit, time - commit);
    card.arrived(time - commit);
  }
};

function draw() {
  for (const { card } of undrawn) card.draw();
  frames.push(undrawn);
  undrawn = [];
  // A message sent from the frame's callback is handled after the frame was painted.
  painted.port2.postMessage(null);
}

document.addEventListener("visibilitychange", () => {
  for (const { card } of undrawn) card.draw();
  undrawn = [];
});

function onRow({ detail: { data, at } }) {
  const { record, changes, metadata } = data;
  const card = cards.get(record?.symbol);
  if (!card) return;
  if (data.action !== "update") ledger.forget(record.symbol); // a row's ticks begin with its insert
  if (data.action === "delete") return;
  if (!ledger.take(record)) return;
  const commit = parse(metadata.commit_timestamp);
  const caughtUp = commit < readyAt;
  if (broken) broken.rows += caughtUp ? 1 : 0;
  card.take(record, changes);
  if (document.hidden) {
    card.draw(); // there are no frames, and no time to the screen
  } else {
    if (!undrawn.length) requestAnimationFrame(draw);
    undrawn.push({ card, commit, at, caughtUp });
  }
  picture.row();
  rate.rows += 1;
  if (record.symbol === facts.hand && !caughtUp) {
    tried("write");
    tell([`${facts.hand} = ${record.price}`], `, written by hand, was here ${milliseconds(at - commit)} ms after its commit.`);
  }
  switches.row(record.symbol, at);
  ended(caughtUp);
}

/** The stream is back; once the rows are live again, sum up what the break was like. */
function ended(caughtUp) {
  if (!broken?.back || caughtUp) return;
  const { at, back, rows, lost, killed } = broken;
  broken = null;
  const missed = ledger.lost - lost;
  tell([`Back on replica ${holder} after ${milliseconds(back - at)} ms`], killed ? " by itself" : "", `: ${rows} missed `
    + `${rows === 1 ? "row" : "rows"} caught up, ${missed} lost.`);
}

function onReady({ detail: { data, at } }) {
  holder = replicaName(data.replica);
  readyAt = now();
  picture.holds(holder);
  status("live", `Live on replica ${holder}`);
  byId("kill").disabled = false;
  byId("kill-text").textContent = `Kill replica ${holder} (kill -9)`;
  if (broken) {
    ledger.reconnects += 1;
    broken.back = at;
  } else {
    tell([`${person().name} signed in. `], `Replica ${holder} holds the stream.`);
  }
  switches.begin(symbolsOf(data.topics));
}

function onSubscriptions({ detail: { data, at } }) {
  for (const symbol of symbolsOf([...data.added, ...data.removed])) ledger.forget(symbol);
  switches.change(symbolsOf(data.topics), at);
}

const symbolsOf = (topics) => topics.filter((topic) => topic.startsWith(TOPIC)).map((topic) => topic.slice(TOPIC.length));

function onAway({ detail: { at } }) {
  broken ??= { at, rows: 0, lost: ledger.lost, killed: false, back: null };
  broken.back = null;
  readyAt = Infinity;
  holder = null;
  picture.holds(null);
  status("away", "Reconnecting …");
  byId("kill").disabled = true;
  byId("kill-text").textContent = "Kill my replica";
  poll();
}

function onReset({ detail: { data } }) {
  ledger.reset();
  tell(["The log no longer has what was missed"], ` (${data.reason}): the board goes on from now.`);
}

/** Tick off what the page suggests to try. */
function tried(what) {
  const item = document.querySelector(`[data-try="${what}"]`);
  if (item.classList.contains("done")) return;
  item.classList.add("done");
  item.append(Object.assign(document.createElement("span"), { className: "unseen", textContent: " (done)" }));
}

function status(name, text) {
  byId("status").dataset.state = name;
  byId("status-text").textContent = text;
}

const person = () => facts.people.find((each) => each.id === user);
// A replica may name itself by more than the letter that the demo gave it.
const replicaName = (name) => latest.replicas.find((each) => each.name === name)?.name ?? name;

// What the demo's server knows: asked once a second, and at once after something broke.
let latest = { replicas: [], replay: { paused: false, commits: 0 } };
const rate = { rows: 0, at: performance.now(), commits: 0, polled: -Infinity };

async function poll() {
  try {
    latest = await session.state();
  } catch {
    status("away", "The demo has ended");
    return;
  }
  if (latest.run !== facts.run) {
    location.reload(); // another demo on the same port: other replicas, another psql command
    return;
  }
  picture.replicas(latest.replicas);
  const time = performance.now();
  if (time - rate.polled > 900) {
    const perSecond = ((latest.replay.commits - rate.commits) / (time - rate.polled)) * 1000;
    if (rate.polled > 0) byId("pg-rate").textContent = Math.round(perSecond);
    Object.assign(rate, { commits: latest.replay.commits, polled: time });
  }
  const paused = latest.replay.paused;
  byId("pause").setAttribute("aria-pressed", paused);
  byId("pause").textContent = paused ? "Go on with the replay" : "Pause the replay";
}

function perSecond() {
  const time = performance.now();
  const seconds = (time - rate.at) / 1000;
  byId("browser-rate").textContent = Math.round(rate.rows / seconds);
  Object.assign(rate, { rows: 0, at: time });
  for (const name of ["rows", "lost", "doubled", "reconnects"]) byId(`fact-${name}`).textContent = ledger[name].toLocaleString("en");
  for (const name of ["lost", "doubled"]) byId(`fact-${name}`).classList.toggle("bad", ledger[name] > 0);
}

async function enter(id) {
  user = id;
  try { sessionStorage.setItem("rowcast-user", id); } catch { /* then it is asked again on reload */ }
  showPerson(person(), facts.people, () => tried("second"));
  byId("board").focus({ preventScroll: true }); // the button that had the focus is gone
  await poll();
  try {
    await session.signIn(id);
  } catch (problem) {
    tell(["Not signed in: "], `${problem.message}.`);
    return;
  }
  stream = new Stream(id);
  const heard = { row: onRow, ready: onReady, subscriptions: onSubscriptions, reset: onReset, away: onAway, raw: ({ detail }) => tape.take(detail) };
  for (const [name, listener] of Object.entries(heard)) stream.addEventListener(name, listener);
}

function leave() {
  stream?.close();
  try { sessionStorage.removeItem("rowcast-user"); } catch { /* nothing was stored */ }
  location.assign("/");
}

function build() {
  const flip = (symbol, on) => switches.flip(symbol, on);
  const symbols = [...facts.symbols.map((each) => ({ ...each, daily: each.symbol === "VIX" })), { symbol: facts.hand, name: "Your own row", unit: "" }];
  for (const about of symbols) {
    const card = about.symbol === facts.hand ? handCard(about, facts.psql, flip) : new Card(about, flip);
    cards.set(about.symbol, card);
    byId("cards").append(card.element);
  }
  byId("pg-version").textContent = facts.postgres.version;
  const shares = facts.symbols.filter((each) => each.unit);
  byId("provenance").textContent = "Real prices as recorded, only faster: "
    + `${sentence(shares.map((each) => each.symbol))} month by month, ${shares[0].from.slice(0, 4)} to ${shares[0].to.slice(0, 4)}; `
    + `VIX day by day, summer of 2009. About ${facts.rate} commits a second for each.`;
}

byId("switch-user").addEventListener("click", leave);
byId("pause").addEventListener("click", async () => {
  await session.pause(!latest.replay.paused).catch((problem) => tell(`${problem.message}.`));
  poll();
});
byId("kill").addEventListener("click", async () => {
  const at = now();
  try {
    byId("kill").disabled = true;
    const { replica, pid, pause } = await session.kill();
    // The answer and the end of the stream come in either order.
    broken ??= { at, rows: 0, lost: ledger.lost, back: null };
    Object.assign(broken, { at, killed: true });
    tried("kill");
    tell([`Replica ${replica} killed`], ` (kill -9, process ${pid}). It is started again in ${pause} s.`);
  } catch (problem) {
    byId("kill").disabled = holder === null;
    tell(["Not killed: "], `${problem.message}.`);
  }
  poll();
});

build();
setInterval(() => user && poll(), 1000);
setInterval(perSecond, 1000);
let remembered = new URLSearchParams(location.search).get("user");
try { remembered ??= sessionStorage.getItem("rowcast-user"); } catch { /* asked below */ }
if (facts.people.some((each) => each.id === remembered)) enter(remembered);
else openDoor(facts.people, enter);
