// Talking to the demo's server: signing in, channels, and what the demo adds. Errors are Errors with one sentence.

/** Names this page to the demo's proxy, so that it can tell which replica holds this page's stream. */
export const client = Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36)).join("");

const CHANNEL = "/users/me/channels/finance";
let token = "";

async function call(path, { method = "GET", body, auth = false } = {}) {
  const headers = { "x-demo-client": client };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (auth) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.error ?? `the server answered ${answer.status}`);
  return { data, replica: answer.headers.get("x-demo-replica") };
}

export const about = async () => (await call("/demo/about")).data;
export const state = async () => (await call("/demo/state")).data;
export const kill = async () => (await call("/demo/kill", { method: "POST", body: { client } })).data;
export const pause = async (paused) => (await call("/demo/replay", { method: "POST", body: { paused } })).data;

/** Get a token for a user; the calls that need one use it from then on. */
export async function signIn(user) {
  token = (await call("/demo/sign-in", { method: "POST", body: { user } })).data.token;
}

/** Where this page's stream is. `last`: the id to go on from, for a new EventSource, which remembers none. */
export function streamUrl(last) {
  const query = new URLSearchParams({ token, client });
  if (last) query.set("last_event_id", last);
  return `/events?${query}`;
}

/** Write which symbols the user watches. Resolves to the name of the replica that took the write. */
export async function watch(symbols) {
  const body = { enabled: true, config: { symbols } };
  return (await call(CHANNEL, { method: "PUT", body, auth: true })).replica;
}
