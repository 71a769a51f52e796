// Latency from the commit to the page's script and to the painted frame: median, 95th percentile, a strip of the last.

const KEPT = 300;
const BARS = 90;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

/** Milliseconds for people. */
export const milliseconds = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

function quantile(sorted, q) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))];
}

export class Meter {
  #page = [];
  #screen = [];
  #strip = byId("strip");
  #bars = [];
  #label;

  constructor() {
    for (let n = 0; n < BARS; n++) this.#bars.push(this.#strip.appendChild(document.createElementNS(SVG, "rect")));
    this.#label = this.#strip.appendChild(document.createElementNS(SVG, "text"));
    setInterval(() => this.#draw(), 500);
  }

  /** One row: milliseconds from its commit to the script, and to the frame. */
  take(page, screen) {
    this.#page.push(page);
    this.#screen.push(screen);
    if (this.#page.length > KEPT) {
      this.#page.shift();
      this.#screen.shift();
    }
  }

  #draw() {
    if (!this.#page.length || document.hidden) return;
    const [page, screen] = [this.#page, this.#screen].map((values) => [...values].sort((a, b) => a - b));
    for (const [id, sorted, q] of [["page-p50", page, 0.5], ["page-p95", page, 0.95], ["screen-p50", screen, 0.5], ["screen-p95", screen, 0.95]]) {
      byId(id).textContent = `${milliseconds(quantile(sorted, q))} ms`;
    }
    byId("hero-latency").textContent = byId("screen-p50").textContent;
    this.#drawStrip(quantile(screen, 0.95));
  }

  #drawStrip(p95) {
    const width = this.#strip.clientWidth;
    const height = this.#strip.clientHeight;
    const top = Math.max(20, Math.ceil((p95 * 1.3) / 10) * 10);
    const last = this.#screen.slice(-BARS);
    const step = width / BARS;
    this.#bars.forEach((bar, n) => {
      const value = last[n - (BARS - last.length)];
      const size = value === undefined ? 0 : Math.max(1.5, (Math.min(value, top) / top) * (height - 13));
      bar.setAttribute("x", n * step);
      bar.setAttribute("width", Math.max(1, step - 1.2));
      bar.setAttribute("y", height - size);
      bar.setAttribute("height", size);
    });
    this.#label.setAttribute("x", 0);
    this.#label.setAttribute("y", 9);
    this.#label.textContent = `to the frame, last ${last.length} rows, full height ${top} ms`;
    this.#strip.setAttribute("aria-label", `Latency of the last ${last.length} rows, from 0 to ${top} milliseconds`);
  }
}
