// The browser's own EventSource, which comes back by itself with Last-Event-ID, and what arrives over it.

import { signIn, streamUrl } from "./session.js";
import { now } from "./clock.js";

const CONTROL = ["rowcast.ready", "rowcast.subscriptions", "rowcast.reset", "rowcast.snapshot", "rowcast.bye"];

/**
 * Dispatches "row", the control events by their name without "rowcast.", "raw" for each of them, and "away"
 * when the connection broke. Each has `detail.data`, `detail.id` and `detail.at` (clock.js).
 */
export class Stream extends EventTarget {
  #source = null;
  #user;
  #last = "";

  constructor(user) {
    super();
    this.#user = user;
    this.#open();
  }

  close() {
    this.#source.close();
  }

  #open() {
    const source = (this.#source = new EventSource(streamUrl(this.#last)));
    source.onmessage = (message) => this.#take("message", message);
    for (const name of CONTROL) source.addEventListener(name, (message) => this.#take(name, message));
    source.onerror = () => {
      this.#emit("away", { at: now() });
      // A status other than 200 is final for an EventSource (a token that has ended, say): begin anew.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.#again(source), 1000);
    };
  }

  async #again(source) {
    if (source !== this.#source) return;
    try {
      await signIn(this.#user);
      this.#open();
    } catch {
      setTimeout(() => this.#again(source), 1000);
    }
  }

  #take(event, message) {
    const at = now();
    const data = JSON.parse(message.data);
    this.#last = message.lastEventId;
    const detail = { event, id: message.lastEventId, text: message.data, data, at };
    if (event === "message") this.#emit("row", detail);
    else this.#emit(event.slice("rowcast.".length), detail);
    this.#emit("raw", detail);
    if (event === "rowcast.bye" && ["token_expired", "disconnected"].includes(data.reason)) {
      this.#source.close();
      this.#again(this.#source);
    }
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
