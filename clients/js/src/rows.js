/**
 * A keyed collection that is kept from snapshots and changes.
 *
 * `topic` keeps one topic (without it: all of the stream's). `key`: the columns that tell rows apart, where no
 * snapshot says so.
 */
export class Rows {
  constructor({ topic, key = ["id"] } = {}) {
    this.topic = topic;
    this.key = key;
    this.topics = new Map();
    this.staging = new Map();
    this.listeners = new Set();
    this.list = [];
    /** Something was missed and no rows will follow by themselves: fetch them and call `replace`. */
    this.stale = false;
  }

  /** The rows, in the order in which they came. The same array until something changes. */
  get = () => (this.list ??= [...this.topics.values()].flatMap((rows) => [...rows.values()]));

  /** Call `listener` after changes, at most once for all that came together. Returns what ends it. */
  subscribe = (listener) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  /** Put `rows` in the place of all that is known of a topic. */
  replace(rows, topic = this.topic ?? "") {
    this.topics.set(topic, new Map(rows.map((row) => [this.name(row), row])));
    this.stale = false;
    this.changed();
  }

  name(row, key = this.key) {
    return JSON.stringify(key.map((column) => row[column]));
  }

  mine(topic) {
    return this.topic === undefined || topic === this.topic;
  }

  /** Take an event of the stream. */
  take({ event, data }) {
    if (event === "message") isChange(data) && this.change(data);
    else if (event === "rowcast.snapshot" && this.mine(data.topic)) this.page(data);
    else if (event === "rowcast.subscriptions" || event === "rowcast.ready") this.keep(has(data.topics));
    else if (event === "rowcast.reset" && !data.snapshot) {
      this.stale = true;
      this.changed();
    }
  }

  page({ topic, rows = [], key, first, last, failed }) {
    if (failed) {
      this.stale = true;
      return this.changed();
    }
    if (key?.length) this.key = key;
    if (first) this.staging.set(topic, new Map());
    const staged = this.staging.get(topic);
    for (const row of rows) staged?.set(this.name(row), row);
    if (last && staged) {
      this.staging.delete(topic);
      this.topics.set(topic, staged);
      this.stale = false;
      this.changed();
    }
  }

  change({ topic, action, record, changes }) {
    if (action === "truncate") {
      const start = topic.replace(/\*$/, "");
      return this.keep((name) => !name.startsWith(start));
    }
    if (!this.mine(topic)) return;
    const rows = this.topics.get(topic) ?? new Map();
    this.topics.set(topic, rows);
    const name = this.name(record);
    if (action === "delete") rows.delete(name);
    else {
      // An update that changed the key tells the old one among its `changes`.
      const was = this.name({ ...record, ...changes });
      const before = rows.get(was);
      if (was !== name) rows.delete(was);
      // A large value that an update left alone is not in its record: the one that is there stays.
      rows.set(name, { ...before, ...record });
    }
    this.changed();
  }

  keep(test) {
    for (const topic of [...this.topics.keys()]) if (!test(topic)) this.topics.delete(topic) && this.changed();
  }

  changed() {
    this.list = null;
    if (this.due) return;
    this.due = true;
    queueMicrotask(() => {
      this.due = false;
      for (const listener of this.listeners) listener();
    });
  }

  /** What another tab needs to have the same: pages, as the server would send them. */
  pages() {
    return [...this.topics].map(([topic, rows]) => ({
      event: "rowcast.snapshot",
      data: { topic, rows: [...rows.values()], key: this.key, first: true, last: true },
      id: "",
    }));
  }
}

/** Which topics a user has: those named, the user's own, and what was put in without one. */
const has = (topics) => (topic) => !topic || topic.startsWith("user:") || topics.includes(topic);

/** Where the envelope is Sequin's, what is published stands alone, and may have an action of its own. */
function isChange(data) {
  if (!data?.action || typeof data.topic !== "string") return false;
  return data.action === "truncate" || (typeof data.record === "object" && data.record !== null);
}
