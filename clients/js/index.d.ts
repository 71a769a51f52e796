/** What `connect` can be told. */
export interface Options {
  /** The user's token, or a function that gives it. `expired`: the last one was refused or has expired; get a new one. */
  token?: string | ((why: { expired: boolean }) => string | Promise<string>);
  /** Narrow the stream to these topics. Without it: all that the user has. */
  topics?: string[];
  /** Begin with the current rows of the topics, on routes that allow it; a reset is then followed by rows, too. */
  snapshot?: boolean;
  /** One connection for all tabs of this origin (HTTP/1.1 allows a browser six to a host). A string keeps users apart. */
  shared?: boolean | string;
  /** Resume from this position. Without it: from now on. */
  lastEventId?: string;
  /** Milliseconds without a byte, heartbeats included, after which the connection is taken for dead. 60,000. */
  silence?: number;
  /** Milliseconds after which a hidden page lets go of its connection, to come back when it is seen. 0: never. */
  hiddenAfter?: number;
  /** As for `fetch`, where the token is in a cookie. "same-origin". */
  credentials?: RequestCredentials;
  /** Instead of the global one. */
  fetch?: typeof fetch;
}

export type State = "connecting" | "open" | "waiting" | "closed";

export interface Message<T = any> {
  /** "message" for changes and published data; `rowcast.…` for what the service says. */
  event: string;
  /** Parsed JSON; text, where it is none. */
  data: T;
  /** The position to resume from. */
  id: string;
}

export interface Change<R = Record<string, unknown>> {
  topic: string;
  action: "insert" | "update" | "delete" | "truncate" | "read";
  record: R;
  changes: Partial<R> | null;
  moved?: true;
  metadata: { table_schema: string; table_name: string; commit_timestamp: string; unchanged?: string[]; truncated?: true };
}

export function connect(url: string | URL, options?: Options): Stream;

export class Stream {
  constructor(url: string | URL, options: Options);
  readonly state: State;
  readonly lastEventId: string;
  /** Call `handler` for each event of that name; "*" is all of them. Returns what ends it. */
  on(name: "state", handler: (change: { state: State; detail: string }) => void): () => void;
  on(name: "message", handler: (message: Message<Change>) => void): () => void;
  on(name: string, handler: (message: Message) => void): () => void;
  /** A collection of rows that is kept up to date. */
  rows<R = Record<string, unknown>>(options?: { topic?: string; key?: string[] }): Rows<R>;
  /** End it for good. */
  close(): void;
}

export class Rows<R = Record<string, unknown>> {
  constructor(options?: { topic?: string; key?: string[] });
  /** The rows; the same array until something changes. */
  get(): R[];
  /** Call `listener` after changes, once for all that came together. Returns what ends it. */
  subscribe(listener: () => void): () => void;
  /** Put `rows` in the place of all that is known of a topic. */
  replace(rows: R[], topic?: string): void;
  /** Something was missed and no rows follow by themselves: fetch them and call `replace`. */
  readonly stale: boolean;
  take(message: Message): void;
}

export class Parser {
  constructor(hooks: {
    onEvent: (event: { event: string; data: string; id: string }) => void;
    onId?: (id: string) => void;
    onRetry?: (milliseconds: number) => void;
  });
  id: string;
  feed(text: string): void;
}
