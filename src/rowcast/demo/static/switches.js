// The switches of the cards. A flip writes the user's channel through one replica, and is done when the stream,
// which another replica may hold, says that it is in force. What the stream says is what the switches show.

import { now } from "./clock.js";
import { watch } from "./session.js";

const same = (one, other) => one.size === other.size && [...one].every((symbol) => other.has(symbol));

/**
 * `cards`: symbol → Card. `heard.wrote(replica)` is called for each write, `heard.done(flip)` when a flip is in
 * force (and, switched on, its first row is here), `heard.failed(error)` when a write was refused. A flip has
 * `symbol`, `on`, `replica` and the times `at`, `inForce` and `first`.
 */
export class Switches {
  #cards;
  #heard;
  #truth = new Set(); // the symbols that the stream has
  #wanted = null; // those that the switches stand for, until the stream has said so
  #writing = false;
  #flips = new Map();

  constructor(cards, heard) {
    this.#cards = cards;
    this.#heard = heard;
  }

  async flip(symbol, on) {
    this.#wanted ??= new Set(this.#truth);
    if (on) this.#wanted.add(symbol);
    else this.#wanted.delete(symbol);
    this.#cards.get(symbol).busy();
    this.#flips.set(symbol, { symbol, on, at: now(), replica: null, inForce: null, first: null });
    if (this.#writing) return; // the write under way is followed by one with the newest state
    this.#writing = true;
    try {
      await this.#write();
    } catch (error) {
      this.#forget();
      this.#heard.failed(error);
    } finally {
      this.#writing = false;
    }
  }

  /** A new stream has these symbols; whatever was under way is in it or is not. */
  begin(symbols) {
    this.#truth = new Set(symbols);
    if (!this.#writing) this.#forget();
    this.#show();
  }

  /** The symbols of the open stream changed to these. */
  change(symbols, at) {
    const before = this.#truth;
    this.#truth = new Set(symbols);
    for (const flip of this.#flips.values()) {
      if (this.#truth.has(flip.symbol) === flip.on && before.has(flip.symbol) !== flip.on) flip.inForce ??= at;
      this.#check(flip);
    }
    this.#show();
  }

  /** A row of the symbol arrived. */
  row(symbol, at) {
    const flip = this.#flips.get(symbol);
    if (!flip?.inForce) return;
    flip.first ??= at;
    this.#check(flip);
  }

  async #write() {
    for (;;) {
      const sent = new Set(this.#wanted ?? this.#truth);
      const replica = await watch([...sent].sort());
      this.#heard.wrote(replica);
      for (const flip of this.#flips.values()) {
        flip.replica ??= replica;
        this.#check(flip);
      }
      if (!this.#wanted || same(this.#wanted, sent)) break;
    }
    // Flipped and flipped back: what was written is what had been so already, and the stream says nothing.
    if (this.#wanted && same(this.#wanted, this.#truth)) this.#forget();
  }

  #check(flip) {
    if (!flip.replica || !flip.inForce || (flip.on && !flip.first)) return;
    this.#flips.delete(flip.symbol);
    this.#heard.done(flip);
  }

  #forget() {
    this.#wanted = null;
    for (const flip of this.#flips.values()) if (!flip.inForce) this.#flips.delete(flip.symbol);
    this.#show();
  }

  #show() {
    if (this.#wanted && same(this.#wanted, this.#truth)) this.#wanted = null;
    for (const [symbol, card] of this.#cards) {
      const on = this.#truth.has(symbol);
      if (!this.#wanted || this.#wanted.has(symbol) === on) card.set(on);
    }
  }
}
