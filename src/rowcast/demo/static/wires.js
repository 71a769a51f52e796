// The wires of the picture and what travels on them. Nodes are HTML; this draws between their edges.

const SVG = "http://www.w3.org/2000/svg";
const still = matchMedia("(prefers-reduced-motion: reduce)");
const FLIGHT = 260; // milliseconds per wire: long enough to be seen, not the latency

export class Wires {
  #svg;
  #frame;
  #paths = new Map(); // "A:wal" → path
  #flights = []; // { path, circle, start, then }

  constructor(svg) {
    this.#svg = svg;
    this.#frame = svg.parentElement;
  }

  /** Draw anew. Each wire: { key, from, to, className, shift }; `shift` pixels keep parallel wires apart. */
  draw(wires) {
    const gone = new Set(this.#paths.keys());
    for (const { key, from, to, className, shift } of wires) {
      gone.delete(key);
      let path = this.#paths.get(key);
      if (!path) {
        path = this.#svg.insertBefore(document.createElementNS(SVG, "path"), this.#svg.querySelector("circle"));
        this.#paths.set(key, path);
      }
      path.setAttribute("class", className);
      path.setAttribute("d", this.#route(from, to, shift));
    }
    for (const key of gone) {
      this.#paths.get(key).remove();
      this.#paths.delete(key);
    }
  }

  /** Send a dot along wires, one after the other; wires that are not there end the flight. */
  send(className, ...keys) {
    if (still.matches || document.hidden || this.#flights.length > 24) return;
    this.#launch(className, keys, performance.now());
    if (this.#flights.length === 1) requestAnimationFrame((time) => this.#fly(time));
  }

  #launch(className, [key, ...then], start) {
    const path = this.#paths.get(key);
    if (!path) return;
    const circle = this.#svg.appendChild(document.createElementNS(SVG, "circle"));
    circle.setAttribute("class", className);
    circle.setAttribute("r", className ? 4 : 2.5);
    circle.setAttribute("visibility", "hidden");
    this.#flights.push({ path, circle, start, then, className });
  }

  #fly(time) {
    const flights = this.#flights;
    this.#flights = [];
    for (const flight of flights) {
      const part = (time - flight.start) / FLIGHT;
      if (part >= 1 || !flight.path.isConnected) {
        flight.circle.remove();
        if (flight.path.isConnected && flight.then.length) this.#launch(flight.className, flight.then, time);
        continue;
      }
      const point = flight.path.getPointAtLength(flight.path.getTotalLength() * Math.max(0, part));
      flight.circle.setAttribute("cx", point.x);
      flight.circle.setAttribute("cy", point.y);
      flight.circle.setAttribute("visibility", "visible");
      this.#flights.push(flight);
    }
    if (this.#flights.length) requestAnimationFrame((next) => this.#fly(next));
  }

  #route(from, to, shift) {
    const origin = this.#frame.getBoundingClientRect();
    const [a, b] = [from, to].map((node) => node.getBoundingClientRect());
    const middle = (box) => [box.left + box.width / 2 - origin.left, box.top + box.height / 2 - origin.top];
    const [[ax, ay], [bx, by]] = [middle(a), middle(b)];
    // Stacked nodes (a phone) are joined bottom to top, others side to side.
    if (a.bottom <= b.top || b.bottom <= a.top) {
      if (Math.min(a.right, b.right) > Math.max(a.left, b.left)) {
        const down = ay < by;
        const [y1, y2] = [(down ? a.bottom : a.top) - origin.top, (down ? b.top : b.bottom) - origin.top];
        const half = (y1 + y2) / 2;
        // At the wide node the wires start apart, below the thing they lead to.
        const lean = (x, other, box) => x + Math.max(-box.width / 2 + 24, Math.min(box.width / 2 - 24, (other - x) * 0.35));
        const [x1, x2] = [lean(ax, bx, a) + shift, lean(bx, ax, b) + shift];
        return `M${x1} ${y1}C${x1} ${half} ${x2} ${half} ${x2} ${y2}`;
      }
    }
    const right = ax < bx;
    const [x1, x2] = [(right ? a.right : a.left) - origin.left, (right ? b.left : b.right) - origin.left];
    const half = (x1 + x2) / 2;
    const lean = (y, other, box) => y + Math.max(-box.height / 2 + 12, Math.min(box.height / 2 - 12, (other - y) * 0.2));
    const [y1, y2] = [lean(ay, by, a) + shift, lean(by, ay, b) + shift];
    return `M${x1} ${y1}C${half} ${y1} ${half} ${y2} ${x2} ${y2}`;
  }
}
