/**
 * A parser of event streams (WHATWG HTML, section 9.2.6), fed with pieces of text as they come.
 *
 * `onEvent({event, data, id})` is called for each event, `onId(id)` when a block without data moved the
 * position on (Rowcast's heartbeat), `onRetry(ms)` when the server says how long to wait.
 */
export class Parser {
  constructor({ onEvent, onId = () => {}, onRetry = () => {} }) {
    this.onEvent = onEvent;
    this.onId = onId;
    this.onRetry = onRetry;
    this.id = "";
    this.rest = "";
    this.first = true;
    this.clear();
  }

  clear() {
    this.data = null;
    this.event = "";
    this.moved = false;
  }

  feed(text) {
    if (this.first && text) {
      this.first = false;
      if (text[0] === "\uFEFF") text = text.slice(1);
    }
    text = this.rest + text;
    // A CR at the very end may be half of a CRLF: wait for what follows.
    const held = text.endsWith("\r") ? 1 : 0;
    const lines = (held ? text.slice(0, -1) : text).split(/\r\n|\n|\r/);
    this.rest = lines.pop() + (held ? "\r" : "");
    for (const line of lines) this.line(line);
  }

  line(line) {
    if (!line) return this.dispatch();
    const colon = line.indexOf(":");
    if (!colon) return; // a comment
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (name === "data") this.data = this.data === null ? value : this.data + "\n" + value;
    else if (name === "event") this.event = value;
    else if (name === "id" && !value.includes("\0")) [this.id, this.moved] = [value, true];
    else if (name === "retry" && /^\d+$/.test(value)) this.onRetry(Number(value));
  }

  dispatch() {
    const { data, event, id, moved } = this;
    this.clear();
    if (data !== null) this.onEvent({ event: event || "message", data, id });
    else if (moved) this.onId(id);
  }
}
