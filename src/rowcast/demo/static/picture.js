// The path of a row: Postgres, the replicas, this browser; who holds the stream, who took the last write.

import { Wires } from "./wires.js";

const EVERY = 110; // milliseconds between dots: more could not be told apart

const byId = (id) => document.getElementById(id);

function badge(className, text) {
  return Object.assign(document.createElement("span"), { className: `badge ${className}`, textContent: text });
}

export class Picture {
  #wires = new Wires(document.querySelector(".wires"));
  #nodes = new Map();
  #replicas = [];
  #holder = null;
  #writer = null;
  #lastDot = 0;

  constructor() {
    new ResizeObserver(() => this.#draw()).observe(byId("picture"));
  }

  /** The replicas as /demo/state tells of them. */
  replicas(replicas) {
    this.#replicas = replicas;
    this.#render();
  }

  /** The replica that holds the stream; null while none does. */
  holds(name) {
    this.#holder = name;
    this.#render();
  }

  /** The replica that took a write just now. */
  wrote(name) {
    this.#writer = name;
    this.#render();
    this.#wires.send("write", `${name}:ask`, `${name}:write`);
  }

  /** A row arrived over the stream. */
  row() {
    const time = performance.now();
    if (!this.#holder || time - this.#lastDot < EVERY) return;
    this.#lastDot = time;
    for (const { name, state } of this.#replicas) {
      if (name === this.#holder) this.#wires.send("stream", `${name}:wal`, `${name}:stream`);
      else if (state === "up") this.#wires.send("", `${name}:wal`);
    }
  }

  #render() {
    for (const replica of this.#replicas) this.#fill(this.#node(replica.name), replica);
    this.#draw();
  }

  #node(name) {
    if (!this.#nodes.has(name)) {
      const node = document.createElement("div");
      node.className = "node replica";
      node.innerHTML = '<div class="row"><b></b><span class="sub num"></span></div><div class="badges"></div>';
      node.querySelector("b").textContent = `Replica ${name}`;
      byId("replicas").append(node);
      this.#nodes.set(name, node);
    }
    return this.#nodes.get(name);
  }

  #fill(node, { name, state, killed, pid, port, back_in }) {
    const holds = name === this.#holder && state === "up";
    const badges = [];
    if (holds) badges.push(badge("stream", "holds your stream"));
    if (name === this.#writer && state === "up") badges.push(badge("write", "took your last write"));
    if (state === "down") {
      const when = back_in === null ? "" : `, ${killed ? "back" : "tried again"} in ${Math.ceil(back_in)} s`;
      badges.push(badge("dead", (killed ? "killed" : "ended by itself") + when));
    }
    if (state === "starting") badges.push(badge("write", "starting"));
    const wanted = badges.map((each) => each.textContent).join();
    if (node.dataset.shown === `${state}${pid}${wanted}`) return;
    node.dataset.shown = `${state}${pid}${wanted}`;
    node.dataset.state = state;
    node.toggleAttribute("data-holds", holds);
    node.querySelector(".sub").textContent = port ? `:${port} · pid ${pid}` : pid ? `pid ${pid}` : "no process";
    node.querySelector(".badges").replaceChildren(...badges);
  }

  #draw() {
    const [postgres, browser] = [byId("node-postgres"), byId("node-browser")];
    const wires = [];
    for (const { name, state } of this.#replicas) {
      const node = this.#nodes.get(name);
      const up = state === "up";
      const holds = up && name === this.#holder;
      const writes = up && name === this.#writer;
      const apart = writes ? 7 : 0;
      wires.push({ key: `${name}:wal`, from: postgres, to: node, className: holds ? "stream" : up ? "wal" : "wal gone", shift: -apart });
      if (holds) wires.push({ key: `${name}:stream`, from: node, to: browser, className: "stream", shift: -apart });
      if (writes) {
        wires.push({ key: `${name}:ask`, from: browser, to: node, className: "write", shift: apart });
        wires.push({ key: `${name}:write`, from: node, to: postgres, className: "write", shift: apart });
      }
    }
    this.#wires.draw(wires);
  }
}
