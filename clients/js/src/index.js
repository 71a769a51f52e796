import { Connection } from "./connection.js";
import { after } from "./position.js";
import { Rows } from "./rows.js";

export { Parser } from "./parser.js";
export { Rows };

/** Open a user's stream at the service at `url`; see index.d.ts for the options. */
export function connect(url, options = {}) {
  return new Stream(url, options);
}

/** A user's stream: events by `on`, collections by `rows`. With `shared` all tabs of an origin share one connection. */
export class Stream {
  constructor(url, options) {
    const { topics, snapshot, shared = false, hiddenAfter = 0 } = options;
    const base = globalThis.location?.href;
    const address = new URL(String(url).replace(/\/+$/, "").replace(/\/events$/, "") + "/events", base);
    if (topics?.length) address.searchParams.set("topics", topics.join(","));
    if (snapshot) address.searchParams.set("snapshot", "1");
    this.url = address.href;
    this.options = options;
    this.state = "connecting";
    this.lastEventId = options.lastEventId ?? "";
    this.handlers = new Map();
    this.collections = new Set();
    this.life = new AbortController();
    if (snapshot) this.all = this.rows();
    if (shared && globalThis.navigator?.locks && globalThis.BroadcastChannel) this.share(shared);
    else this.lead();
    if (globalThis.document) this.watchPage(hiddenAfter);
  }

  /** Call `handler(event)` for each event of that name, or for all with "*". Returns what ends it. */
  on(name, handler) {
    if (!this.handlers.has(name)) this.handlers.set(name, new Set());
    this.handlers.get(name).add(handler);
    return () => this.handlers.get(name)?.delete(handler);
  }

  /** A collection of rows that is kept up to date: see Rows. */
  rows(options) {
    const rows = new Rows(options);
    if (this.all) for (const page of this.all.pages()) rows.take(page);
    this.collections.add(rows);
    return rows;
  }

  /** End it for good. */
  close() {
    this.life.abort();
    this.connection?.close();
    this.channel?.close();
    this.channel = null; // the connection's last words must not go to a channel that is closed
    this.setState("closed", "");
  }

  lead() {
    const options = { ...this.options, lastEventId: this.lastEventId };
    this.connection = new Connection(this.url, options, {
      event: ({ event, data, id }) => {
        let parsed = data;
        try {
          parsed = JSON.parse(data);
        } catch {
          // text that somebody published as such
        }
        const message = { event, data: parsed, id, from: this.lastEventId };
        this.channel?.postMessage({ kind: "event", message });
        this.deliver(message);
      },
      id: (id) => {
        this.channel?.postMessage({ kind: "id", id });
        this.lastEventId = id;
      },
      state: (state, detail) => {
        this.channel?.postMessage({ kind: "state", state, detail });
        this.setState(state, detail);
      },
    });
  }

  /** The tab that holds the lock has the connection, and tells the others what comes. When it goes, the next one
   *  goes on from what it heard last. */
  share(shared) {
    const name = `rowcast ${typeof shared === "string" ? shared : ""} ${this.url}`;
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => this.heard(data);
    this.channel.postMessage({ kind: "hello" });
    navigator.locks
      .request(name, { signal: this.life.signal }, () => {
        this.lead();
        return new Promise((resolve) => this.life.signal.addEventListener("abort", resolve));
      })
      .catch(() => {}); // closed while it waited
  }

  heard({ kind, message, id, state, detail, pages, ready }) {
    if (kind === "hello") {
      if (this.connection && this.ready)
        this.channel.postMessage({
          kind: "welcome",
          ready: this.ready,
          pages: this.all?.pages() ?? [],
          id: this.lastEventId,
          state: this.state,
        });
    } else if (this.connection) {
      return; // another leader's last words
    } else if (kind === "welcome") {
      if (this.ready) return; // meant for another tab that came
      this.deliver(ready);
      for (const page of pages) this.deliver(page);
      this.lastEventId = id;
      this.setState(state, "");
    } else if (kind === "event") {
      const { event, id, from } = message;
      if (!this.ready && event !== "rowcast.ready") return; // what it is about will come with the welcome
      // A new leader goes on from what it heard last, and we may have heard more of the old one's last words. What has no
      // id of its own has the one before it, and is in no log.
      const { lastEventId } = this;
      const old = id && !after(id, lastEventId);
      if (old && event === "message" && id !== from) return;
      this.deliver(message);
      if (old) this.lastEventId = lastEventId;
    } else if (kind === "id") {
      if (this.ready && (!id || after(id, this.lastEventId))) this.lastEventId = id;
    } else if (kind === "state") {
      this.setState(state, detail);
    }
  }

  deliver(message) {
    const { event, id } = message;
    if (event === "rowcast.ready") this.ready = message;
    if (event !== "rowcast.snapshot" || id) this.lastEventId = id;
    for (const rows of this.collections) rows.take(message);
    for (const name of [event, "*"])
      for (const handler of this.handlers.get(name) ?? []) {
        try {
          handler(message);
        } catch (error) {
          reportError(error); // one handler's trouble is not the others'
        }
      }
  }

  setState(state, detail) {
    if (this.state === "closed") return;
    this.state = state;
    for (const handler of this.handlers.get("state") ?? []) handler({ state, detail });
  }

  /** Frozen pages and lost networks: let go of the connection, and come back at once when there is a point. */
  watchPage(hiddenAfter) {
    const { signal } = this.life;
    const listen = (target, name, handler) => target.addEventListener(name, handler, { signal });
    const pause = () => this.connection?.pause();
    const resume = () => this.connection?.paused && this.connection.resume();
    listen(globalThis, "pagehide", pause);
    listen(globalThis, "pageshow", resume);
    listen(globalThis, "offline", pause);
    listen(globalThis, "online", resume);
    let timer;
    listen(document, "visibilitychange", () => {
      clearTimeout(timer);
      if (document.visibilityState === "visible") resume();
      else if (hiddenAfter) timer = setTimeout(pause, hiddenAfter);
    });
  }
}
