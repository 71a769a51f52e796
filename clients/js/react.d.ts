import type { State, Stream } from "./index.js";
export function useRows<R = Record<string, unknown>>(stream: Stream, options?: { topic?: string; key?: string[] }): R[];
export function useStreamState(stream: Stream): State;
