import { useEffect, useMemo, useSyncExternalStore } from "react";

/** The rows of a stream as they are now; `stream` is what `connect` returned, the options are those of `rows`. */
export function useRows(stream, { topic, key } = {}) {
  const name = key?.join("\0");
  const rows = useMemo(() => stream.rows({ topic, key }), [stream, topic, name]);
  useEffect(() => {
    stream.collections.add(rows);
    return () => stream.collections.delete(rows);
  }, [stream, rows]);
  return useSyncExternalStore(rows.subscribe, rows.get, rows.get);
}

/** The state of a stream: connecting, open, waiting or closed. */
export function useStreamState(stream) {
  return useSyncExternalStore(
    (listener) => stream.on("state", listener),
    () => stream.state,
    () => "connecting",
  );
}
