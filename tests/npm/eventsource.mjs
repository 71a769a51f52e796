// The npm package `eventsource`, as its users write it: prints each event as a line of JSON.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
for (const name of ["rowcast.ready", "message", "rowcast.reset"])
  source.addEventListener(name, ({ type, data, lastEventId }) => console.log(JSON.stringify({ type, data, lastEventId })));
