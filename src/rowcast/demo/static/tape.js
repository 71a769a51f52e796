// The raw events, newest first: one line each, the whole block when opened.

const KEPT = 80;
const ALARM = new Set(["rowcast.reset", "rowcast.bye"]);

const byId = (id) => document.getElementById(id);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Tape {
  #lines = byId("lines");
  #all = [];
  #control = [];
  #waiting = [];
  #filter = "all";
  #held = false;

  constructor() {
    for (const button of document.querySelectorAll("[data-filter]")) {
      button.addEventListener("click", () => this.#choose(button.dataset.filter));
    }
    byId("hold").addEventListener("click", () => this.#hold(!this.#held));
    // Reading an event must not be a chase: opening one holds the list.
    this.#lines.addEventListener("toggle", (event) => event.target.open && this.#hold(true), true);
    setInterval(() => this.#flush(), 250);
  }

  take(detail) {
    this.#all.unshift(detail);
    if (this.#all.length > KEPT) this.#all.pop();
    if (detail.event !== "message") {
      this.#control.unshift(detail);
      if (this.#control.length > KEPT) this.#control.pop();
    }
    if (this.#filter === "all" || detail.event !== "message") this.#waiting.push(detail);
  }

  #flush() {
    if (this.#held || document.hidden || !this.#waiting.length) return;
    const waiting = this.#waiting.slice(-KEPT);
    this.#waiting = [];
    this.#lines.prepend(...waiting.reverse().map(line));
    while (this.#lines.childElementCount > KEPT) this.#lines.lastElementChild.remove();
  }

  #hold(held) {
    this.#held = held;
    const button = byId("hold");
    button.setAttribute("aria-pressed", held);
    button.textContent = held ? "Held" : "Hold";
  }

  #choose(filter) {
    this.#filter = filter;
    for (const button of document.querySelectorAll("[data-filter]")) {
      button.setAttribute("aria-pressed", button.dataset.filter === filter);
    }
    this.#waiting = [];
    this.#hold(false);
    this.#lines.replaceChildren(...(filter === "all" ? this.#all : this.#control).map(line));
  }
}

function line({ event, id, text }) {
  const details = element("details");
  const summary = element("summary");
  summary.append(element("span", "id", id || "no id"));
  const data = element("span", "data");
  if (event !== "message") data.append(element("span", ALARM.has(event) ? "event alarm" : "event", event));
  data.append(text);
  summary.append(data);
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const block = [id && `id: ${id}`, event !== "message" && `event: ${event}`, `data: ${text}`].filter(Boolean).join("\n");
    details.append(element("pre", "", `${block}\n\n${JSON.stringify(JSON.parse(text), null, 2)}`));
  });
  return details;
}
