// The cards: a switch, the price, what it was before, the line of the last ones.

import { milliseconds } from "./meter.js";
import { Sparkline } from "./sparkline.js";

const SVG = "http://www.w3.org/2000/svg";
const price = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const month = new Intl.DateTimeFormat("en", { month: "short", year: "numeric", timeZone: "UTC" });
const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A card. `flip(symbol, on)` is called when its switch is used. */
export class Card {
  element = element("article", "card");
  on = false;
  #about;
  #switch = element("button", "switch");
  #price = element("output", "", "–");
  #delta = element("span", "delta");
  #when = element("span");
  #after = element("span");
  #spark;
  #last = null;
  #record = null;
  #gap = false;
  #dirty = null;

  constructor(about, flip) {
    this.#about = about;
    this.element.setAttribute("aria-label", about.name);
    const head = element("div", "card-head");
    const title = element("h3", "", about.symbol);
    title.append(element("span", "", about.name));
    this.#switch.type = "button";
    this.#switch.setAttribute("role", "switch");
    this.#switch.setAttribute("aria-label", `${about.symbol}, ${about.name}`);
    this.#switch.addEventListener("click", () => flip(about.symbol, !this.on));
    head.append(title, this.#switch);
    const line = element("div", "price");
    this.#price.setAttribute("aria-live", "off");
    line.append(this.#price, this.#delta);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", "spark");
    svg.setAttribute("aria-hidden", "true");
    this.#spark = new Sparkline(svg, about.from ? [about.from, about.to] : null);
    const foot = element("div", "card-foot");
    foot.append(this.#when, this.#after);
    this.element.append(head, line, svg, foot);
    this.set(false);
  }

  /** Show whether the user is subscribed, as the stream says it. */
  set(on) {
    if (!on) this.#gap = true;
    this.on = on;
    this.#switch.setAttribute("aria-checked", on);
    this.#switch.removeAttribute("aria-busy");
    this.element.classList.toggle("off", !on);
    if (!on) this.#after.textContent = "nothing is sent";
    else if (!this.#last) this.#after.textContent = "waiting for a commit";
    else this.#after.textContent = "";
  }

  /** The switch was used, and the stream has not said yet that it is so. */
  busy() {
    this.#switch.setAttribute("aria-busy", "true");
  }

  /** A row arrived; it is drawn by the next `draw`. */
  take(record, changes) {
    const value = Number(record.price);
    // A day before the last one: the recorded series began again.
    const again = this.#record !== null && record.recorded_on !== null && record.recorded_on < this.#record.recorded_on;
    const before = changes?.price === undefined || again ? null : Number(changes.price);
    this.#spark.add(value, record.recorded_on, this.#gap);
    this.#gap = false;
    this.#record = record;
    this.#dirty = { value, before, again };
  }

  /** Put the newest row on the screen. */
  draw() {
    if (!this.#dirty) return;
    const { value, before, again } = this.#dirty;
    this.#dirty = null;
    this.element.classList.add("seen");
    const { unit } = this.#about;
    this.#price.replaceChildren(...(unit ? [element("small", "", unit)] : []), price.format(value));
    this.#flash(before === null ? 0 : value - before);
    this.#delta.className = "delta";
    if (before !== null && before !== value) {
      const up = value > before;
      const percent = before ? Math.abs((value / before - 1) * 100) : 0;
      this.#delta.classList.add(up ? "up" : "down");
      this.#delta.textContent = `${up ? "▲" : "▼"} ${price.format(Math.abs(value - before))} (${percent.toFixed(1)} %)`;
    } else {
      this.#delta.textContent = again ? "from the start" : "";
    }
    const { recorded_on } = this.#record;
    const format = this.#about.daily ? day : month;
    this.#when.textContent = recorded_on ? format.format(new Date(recorded_on)) : "by hand";
    this.#last = value;
    this.#spark.draw();
  }

  /** How long after its commit the row was on the screen. */
  arrived(after) {
    if (this.on) this.#after.textContent = after === null ? "caught up" : `${milliseconds(after)} ms`;
  }

  #flash(change) {
    if (!change) return;
    const name = change > 0 ? "flash-up" : "flash-down";
    this.#price.classList.remove("flash-up", "flash-down");
    void this.#price.offsetWidth; // else the same animation would not start again
    this.#price.classList.add(name);
  }
}

/** The card of the row that is written by hand: wider, with the command for it. */
export function handCard(about, command, flip) {
  const card = new Card(about, flip);
  const [left, how] = [element("div"), element("div", "how")];
  left.append(...card.element.childNodes);
  const text = element("p");
  text.append(element("b", "", "Write it from a terminal"), " and compare what psql prints with what arrives here:");
  const box = element("div", "command");
  const code = element("code", "", command);
  code.title = command;
  const copy = element("button", "", "Copy");
  copy.type = "button";
  copy.setAttribute("aria-label", "Copy the psql command");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = "Selected";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1600);
  });
  box.append(code, copy);
  how.append(text, box);
  card.element.classList.add("hand");
  card.element.append(left, how);
  return card;
}
