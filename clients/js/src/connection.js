import { Parser } from "./parser.js";

const LONGEST = 30_000;

/**
 * One stream over `fetch`, for ever: it resumes with Last-Event-ID, waits as long as the server's `retry:` says (twice
 * as long with each try that fails, spread out), asks for a new token when one has expired, and stops only
 * when coming back would be of no use.
 *
 * `hooks`: `event({event, data, id})`, `id(id)`, `state(name, detail)` with connecting, open, waiting or closed.
 */
export class Connection {
  constructor(url, options, hooks) {
    this.url = url;
    this.options = options;
    this.hooks = hooks;
    this.lastEventId = options.lastEventId ?? "";
    this.retry = 3000;
    this.failures = 0;
    this.stale = false;
    this.closed = false;
    this.paused = false;
    this.wakeUp = () => {};
    this.done = this.run();
  }

  close() {
    this.closed = true;
    this.cut();
  }

  /** Let go of the connection until `resume`: the page is frozen, hidden for long, or offline. */
  pause() {
    this.paused = true;
    this.cut();
  }

  resume() {
    this.paused = false;
    this.failures = 0;
    this.wakeUp();
  }

  cut() {
    this.abort?.abort();
    this.wakeUp();
  }

  async run() {
    while (!this.closed) {
      if (this.paused) {
        this.hooks.state("waiting", "paused");
        await new Promise((resolve) => (this.wakeUp = resolve));
        continue;
      }
      let pause = 0;
      let why = "the connection ended";
      try {
        pause = (await this.once()) ?? 0;
      } catch (error) {
        if (error.final) {
          this.closed = true;
          this.hooks.state("closed", error.message);
          return;
        }
        why = error.message;
        pause = error.pause ?? 0;
        this.failures += 1;
      } finally {
        clearTimeout(this.watch);
        this.abort?.abort();
      }
      if (this.closed || this.paused) continue;
      const grown = Math.min(this.retry * 2 ** Math.max(0, this.failures - 1), Math.max(LONGEST, this.retry));
      pause = Math.max(pause, this.failures ? grown * (0.75 + Math.random() / 2) : this.retry);
      this.hooks.state("waiting", why);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pause);
        this.wakeUp = () => (clearTimeout(timer), resolve());
      });
    }
    this.hooks.state("closed", "");
  }

  async once() {
    const { token, credentials = "same-origin", silence = 60_000, fetch: ask = globalThis.fetch } = this.options;
    this.hooks.state("connecting", "");
    this.abort = new AbortController();
    const headers = { accept: "text/event-stream" };
    const fresh = this.stale;
    this.stale = false;
    const bearer = typeof token === "function" ? await token({ expired: fresh }) : token;
    if (bearer) headers.authorization = `Bearer ${bearer}`;
    if (this.lastEventId) headers["last-event-id"] = this.lastEventId;
    const alive = () => {
      clearTimeout(this.watch);
      this.watch = setTimeout(() => this.abort.abort(new Error("nothing came, not even a heartbeat")), silence);
    };
    alive();
    const response = await ask(this.url, { headers, credentials, cache: "no-store", signal: this.abort.signal });
    if (response.status !== 200) await this.refused(response, fresh);
    const parser = new Parser({
      onRetry: (ms) => (this.retry = ms),
      onId: (id) => this.hooks.id((this.lastEventId = id)),
      onEvent: (event) => {
        this.failures = 0;
        this.lastEventId = event.id;
        if (event.event === "rowcast.ready") this.hooks.state("open", "");
        // A token that has expired, or was revoked, gets us nowhere: ask for another one.
        if (event.event === "rowcast.bye" && /token_expired|disconnected/.test(event.data)) this.stale = true;
        this.hooks.event(event);
      },
    });
    parser.id = this.lastEventId;
    const decoder = new TextDecoder();
    const reader = response.body.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return this.stale ? 1 : 0;
      alive();
      parser.feed(decoder.decode(value, { stream: true }));
    }
  }

  async refused(response, fresh) {
    const { status } = response;
    const text = await response.text();
    let words = text.slice(0, 200);
    try {
      words = JSON.parse(text).error;
    } catch {
      // not Rowcast's words: a proxy's
    }
    const error = new Error(`${status}: ${words}`);
    if (status === 401 && !fresh && typeof this.options.token === "function") {
      this.stale = true; // once, with a token that was asked for anew
      this.failures = 0;
      error.pause = 0;
    } else if (status < 500 && status !== 429 && status !== 408) {
      error.final = true;
    }
    const after = Number(response.headers.get("retry-after"));
    if (after > 0) error.pause = after * 1000;
    throw error;
  }
}
