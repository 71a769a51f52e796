// Counts what arrived, and finds rows that were lost or came twice.
//
// A trigger in Postgres counts the updates of each row in `tick`. While one is subscribed to a symbol, its ticks
// must come one by one, over reconnects too; when the subscription begins anew, counting begins anew.

export class Ledger {
  rows = 0;
  lost = 0;
  doubled = 0;
  reconnects = 0;
  #last = new Map();

  /** Take note of a row; false if it had been seen before. */
  take(record) {
    const last = this.#last.get(record.symbol);
    const tick = Number(record.tick);
    if (last !== undefined && tick <= last) {
      this.doubled += 1;
      return false;
    }
    if (last !== undefined) this.lost += tick - last - 1;
    this.#last.set(record.symbol, tick);
    this.rows += 1;
    return true;
  }

  /** From here on the symbol's ticks may start anywhere. */
  forget(symbol) {
    this.#last.delete(symbol);
  }

  /** The service said that what is missing can't be had any more: that is no silent loss. */
  reset() {
    this.#last.clear();
  }
}
