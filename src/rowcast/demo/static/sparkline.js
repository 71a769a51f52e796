// One symbol's prices as a line that sweeps over the whole recorded time, as on a monitor: what is left of the dot
// is this round of the replay, what is right of it the round before. Without dates, the last prices in their order.

const SVG = "http://www.w3.org/2000/svg";
const PAD = 5;
const UNDATED = 40;

export class Sparkline {
  #span; // [from, to] in milliseconds, or null
  #shapes = {};
  #now = []; // { x: 0…1, value, gap }
  #before = [];
  #width = 0;
  #height = 0;

  /** `span`: the first and last day ("2000-01-01") of what was recorded, or null. */
  constructor(svg, span) {
    this.#span = span?.map((day) => Date.parse(day)) ?? null;
    for (const [name, kind] of [["before", "path"], ["area", "path"], ["line", "path"], ["dot", "circle"]]) {
      this.#shapes[name] = svg.appendChild(document.createElementNS(SVG, kind));
      this.#shapes[name].setAttribute("class", name);
    }
    this.#shapes.dot.setAttribute("r", 3.5);
    this.#shapes.dot.setAttribute("visibility", "hidden");
    new ResizeObserver(([entry]) => {
      this.#width = entry.contentRect.width;
      this.#height = entry.contentRect.height;
      this.draw();
    }).observe(svg);
  }

  /** Add a price. `day`: when it was recorded, or null. `gap`: prices before it were not received. */
  add(value, day, gap) {
    if (!this.#span) {
      this.#now.push({ value, gap });
      if (this.#now.length > UNDATED) this.#now.shift();
      this.#now.forEach((point, n) => (point.x = 1 - (this.#now.length - 1 - n) / (UNDATED - 1)));
      return;
    }
    const [from, to] = this.#span;
    const x = (Date.parse(day) - from) / (to - from);
    if (this.#now.length && x < this.#now.at(-1).x) [this.#before, this.#now] = [this.#now, []];
    this.#now.push({ x, value, gap });
  }

  draw() {
    if (!this.#now.length || !this.#width) return;
    const last = this.#now.at(-1);
    const ahead = this.#before.filter((point) => point.x > last.x);
    const values = [...this.#now, ...ahead].map((point) => point.value);
    const low = Math.min(...values);
    const range = Math.max(...values) - low || 1;
    const x = (point) => (PAD + point.x * (this.#width - 2 * PAD)).toFixed(1);
    const y = (point) => (this.#height - PAD - ((point.value - low) / range) * (this.#height - 2 * PAD)).toFixed(1);
    const line = (points) => points.map((point, n) => `${n && !point.gap ? "L" : "M"}${x(point)} ${y(point)}`).join("");
    const { before, area, line: current, dot } = this.#shapes;
    before.setAttribute("d", line(ahead));
    current.setAttribute("d", line(this.#now));
    area.setAttribute("d", this.#pieces().map((piece) => `M${x(piece[0])} ${this.#height}`
      + piece.map((point) => `L${x(point)} ${y(point)}`).join("") + `L${x(piece.at(-1))} ${this.#height}Z`).join(""));
    dot.setAttribute("visibility", "visible");
    dot.setAttribute("cx", x(last));
    dot.setAttribute("cy", y(last));
  }

  /** The points of this round, cut at the gaps. */
  #pieces() {
    const pieces = [];
    for (const point of this.#now) {
      if (!pieces.length || point.gap) pieces.push([]);
      pieces.at(-1).push(point);
    }
    return pieces;
  }
}
