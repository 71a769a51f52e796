import { bars, line } from "./charts.js";

const SPAN = 300;
const MINUTE = 60;
const TAIL = 200;

const $ = (id) => document.getElementById(id);
const number = (value) => Math.round(value).toLocaleString("en");
const size = (bytes) => {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 1024 || unit === "GB") return `${unit === "B" ? bytes : bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
};
const age = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`);
const latency = (seconds) => (seconds < 1 ? `${+(seconds * 1000).toPrecision(2)} ms` : `${seconds} s`);

const pictures = [];

function show(picture) {
  const before = pictures.at(-1);
  // A replica that was started anew counts from nothing.
  if (before && (before.replica !== picture.replica || picture.totals.entries < before.totals.entries)) pictures.length = 0;
  pictures.push(picture);
  if (pictures.length > SPAN + 1) pictures.shift();
  const rates = (name) =>
    pictures.slice(1).map((now, i) => (now.totals[name] - pictures[i].totals[name]) / Math.max(0.1, now.at - pictures[i].at));
  const entries = rates("entries");
  const deliveries = rates("deliveries");
  const streams = pictures.map((one) => one.streams.open);

  const count = Object.keys(picture.replicas).length;
  $("replica").textContent = `${picture.replica}${count > 1 ? `, one of ${count}` : ""}${picture.leader ? ", reads the WAL" : ""}`;
  card("source", picture.log.ok, `${number(entries.at(-1) ?? 0)} entries/s`, picture.source);
  card("log", picture.log.ok, picture.log.url, `${picture.log.detail}, for ${age(picture.log.age)}`);
  card("hub", picture.hub.ok, `${number(deliveries.at(-1) ?? 0)} deliveries/s`,
    `ring: ${number(picture.ring.entries)} entries, ${size(picture.ring.bytes)} of ${size(picture.ring.limit)}`);
  card("streams", picture.streams.open < picture.streams.limit, number(picture.streams.open),
    `${number(picture.streams.users)} users; ${number(picture.streams.live)} live, ${number(picture.streams.behind)} behind, ${number(picture.streams.starting)} starting`);

  const span = Math.max(MINUTE, pictures.length);
  const all = Object.values(picture.replicas).reduce((sum, one) => sum + one, 0);
  $("now-streams").textContent = number(picture.streams.open);
  $("now-entries").textContent = number(entries.at(-1) ?? 0);
  $("now-deliveries").textContent = number(deliveries.at(-1) ?? 0);
  line($("chart-streams"), streams, span, `${streams.at(-1)} streams now`);
  line($("chart-entries"), entries, span, `${number(entries.at(-1) ?? 0)} entries a second now`);
  line($("chart-deliveries"), deliveries, span, `${number(deliveries.at(-1) ?? 0)} deliveries a second now`);
  histogram(picture);

  const replicas = Object.entries(picture.replicas).sort();
  if (count > 1) replicas.push(["all", all]);
  table("replicas", replicas.map(([name, n]) => [name, number(n)]), "none but this one");
  table("slots", picture.slots.map((slot) => [slot.name, slot.active ? "now" : "no", size(slot.held)]), "none");
  table("slow", picture.slow.map((one) => [one.user, one.cursor ?? "", size(one.pending)]), "none: all are live");
  table("totals", Object.entries({ ...picture.totals, "control waiting": picture["control waiting"] }).map(([name, n]) => [name, number(n)]), "");
  $("floor").textContent = picture.floor;
  $("position").textContent = picture.position;

  const problems = $("problems");
  problems.hidden = !picture.problems.length;
  const list = problems.querySelector("ul");
  const words = picture.problems.join("\n");
  if (list.dataset.words !== words) {
    list.dataset.words = words;
    list.replaceChildren(...picture.problems.map((problem) => Object.assign(document.createElement("li"), { textContent: problem })));
  }
  state(picture.problems.length ? "bad" : "good", picture.problems.length ? `${picture.problems.length} problems` : "all is well");
}

function histogram(picture) {
  const { bounds, counts } = picture.latency;
  const first = pictures.at(-1 - MINUTE) ?? pictures[0];
  const lately = counts.map((count, i) => count - first.latency.counts[i]);
  const total = lately.reduce((sum, count) => sum + count, 0);
  const names = [...bounds.map((bound) => `up to ${latency(bound)}`), `over ${latency(bounds.at(-1))}`];
  let below = 0;
  const at = lately.findIndex((count) => (below += count) >= 0.99 * total);
  const words = total ? `99% ${names[at]}` : "nothing";
  $("now-latency").textContent = words;
  bars($("chart-latency"), lately, names, `${number(total)} in the last minute: ${words}`);
}

function card(id, ok, big, quiet) {
  const item = $(id);
  item.classList.toggle("bad", !ok);
  item.querySelector(".big").textContent = big;
  item.querySelector(".quiet").textContent = quiet;
}

function row(cells) {
  const line = document.createElement("tr");
  cells.forEach((text, i) => {
    const cell = document.createElement(i ? "td" : "th");
    if (!i) cell.scope = "row";
    if (i && /^[\d.,]+( [kMG]?B)?$/.test(text)) cell.className = "number";
    cell.textContent = text;
    line.append(cell);
  });
  return line;
}

function table(id, rows, none) {
  const body = $(id).tBodies[0];
  const text = JSON.stringify(rows);
  if (body.dataset.text === text) return;
  body.dataset.text = text;
  body.replaceChildren(...(rows.length ? rows : [[none]]).map(row));
  if (!rows.length) body.rows[0].cells[0].colSpan = 9;
}

function state(kind, words) {
  const chip = $("state");
  if (chip.textContent === words) return;
  chip.className = `chip ${kind}`;
  chip.textContent = words;
}

const overview = new EventSource("events");
overview.addEventListener("overview", (event) => show(JSON.parse(event.data)));
overview.addEventListener("error", () => state("bad", "no connection"));

// A user

let looked = "";

$("user-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  looked = $("user").value;
  const found = await ask(`users/${encodeURIComponent(looked)}`);
  for (const id of ["resubscribe", "disconnect"]) $(id).disabled = !found;
  if (found) tell(found);
});

for (const action of ["resubscribe", "disconnect"]) {
  $(action).addEventListener("click", async () => {
    if (action === "disconnect" && !confirm(`Disconnect ${looked} everywhere, and refuse the tokens that they have?`)) return;
    const done = await ask(action, { method: "POST", body: JSON.stringify({ user: looked }),
      headers: { "content-type": "application/json", "x-rowcast-admin": "1" } });
    if (done) answer([paragraph(`${action}: in force from ${done.id}`)]);
  });
}

async function ask(path, options) {
  try {
    const response = await fetch(path, options);
    const body = await response.json();
    if (response.ok) return body;
    answer([paragraph(body.error)]);
  } catch (error) {
    answer([paragraph(`no answer: ${error.message}`)]);
  }
  return null;
}

function tell({ user, why, streams, replica }) {
  const parts = [title("Topics, and what gives them")];
  parts.push(why.length
    ? filled(["Topics", "Row", "Rule"], why.map((one) => [one.topics.join(", ") || "none", one.row ? written(one.row) : "query", one.rule]))
    : paragraph(`no rule gives ${user} a topic; what stands in a token is not known before it comes`));
  parts.push(title(`Streams on ${replica}`));
  parts.push(streams.length
    ? filled(["State", "Topics", "Waiting to be sent"], streams.map((one) => [one.state, one.topics.join(", ") || "none", size(one.pending)]))
    : paragraph("none on this replica"));
  answer(parts);
}

// A row's values are texts; json among them is shown as json, not as a text with a text in it.
function written(row) {
  const read = (value) => {
    if (typeof value !== "string" || !/^[[{]/.test(value)) return value;
    try { return JSON.parse(value); } catch { return value; }
  };
  return JSON.stringify(Object.fromEntries(Object.entries(row).map(([name, value]) => [name, read(value)])));
}

const answer = (parts) => $("user-answer").replaceChildren(...parts);
const paragraph = (text) => Object.assign(document.createElement("p"), { textContent: text });
const title = (text) => Object.assign(document.createElement("h3"), { textContent: text });

function filled(head, rows) {
  const made = document.createElement("table");
  const line = made.createTHead().insertRow();
  for (const text of head) line.append(Object.assign(document.createElement("th"), { textContent: text, scope: "col" }));
  made.createTBody().append(...rows.map(row));
  return made;
}

// A topic

let tail = null;

$("tail-form").addEventListener("submit", (event) => {
  event.preventDefault();
  stop();
  $("tail").replaceChildren();
  tail = new EventSource(`tail?topics=${encodeURIComponent($("topic").value)}`);
  $("tail-stop").disabled = false;
  const add = (what, text = "", position = "") => {
    const list = $("tail");
    const line = document.createElement("p");
    const parts = { time: new Date().toLocaleTimeString("en", { hour12: false }), what, text, position };
    for (const [name, content] of Object.entries(parts)) {
      line.append(Object.assign(document.createElement("span"), { className: name, textContent: content }));
    }
    list.prepend(line);
    while (list.children.length > TAIL) list.lastChild.remove();
  };
  tail.addEventListener("rowcast.ready", () => add("following …"));
  tail.addEventListener("rowcast.reset", ({ data }) => add("reset", JSON.parse(data).reason));
  tail.addEventListener("error", () => tail.readyState === EventSource.CLOSED && add("refused", "is that a topic?"));
  tail.onmessage = ({ data, lastEventId }) => {
    // As it is, but for what the heading and the columns say already.
    const { topic, action, record, data: published, metadata, ...rest } = JSON.parse(data);
    const body = record ?? published ?? rest;
    const old = rest.changes && Object.keys(rest.changes).length ? `  was ${JSON.stringify(rest.changes)}` : "";
    add(action ?? "published", JSON.stringify(body) + old, lastEventId);
  };
});

function stop() {
  tail?.close();
  tail = null;
  $("tail-stop").disabled = true;
}
$("tail-stop").addEventListener("click", stop);
