// Asks GET /status once a second and knows how old is what is shown.
//
// Decides whether an answer speaks for the present: it must be readable, and its moment must differ
// from the one before, since a daemon that hangs goes on answering with its last snapshot. Knows
// nothing of the DOM; fetch and clock are arguments, so that tests can stop both.

import { VERSION } from "./model.js";
import { amount, fields, list, words } from "./values.js";

/** From the start of one request to the start of the next. */
const PERIOD_MS = 1000;
/** The second request comes early: only it can show that the first answer was not an old one. */
const CONFIRM_MS = 300;
/** A request that takes longer is given up. */
const TIMEOUT_MS = 2000;
/** What is older is not the present any more. */
export const AGE_MAX_SECONDS = 3;
/** Answering nodes that are remembered, if a balancer lies between; beyond it all are forgotten. */
const NODES_MAX = 16;

export class Feed {
  /** `clock()` is milliseconds that do not stand still while the machine sleeps. */
  constructor(ask, clock) {
    this.ask = ask;
    this.clock = clock;
    /** The newest answer, whether or not it is the present. */
    this.answer = null;
    /** When the request began whose answer was the last one that moved. */
    this.movedAt = null;
    /** The node whose answer it is was seen to move, so it is not stuck. */
    this.confirmed = false;
    /** Why the last request brought nothing new. */
    this.trouble = null;
    /** The last `at_unix_us` of each answering node. */
    this.seen = new Map();
  }

  /** One request. Never throws, never takes much longer than the timeout. True if it brought news. */
  async poll() {
    const begun = this.clock();
    try {
      this.take(await this.ask(TIMEOUT_MS), begun);
    } catch (error) {
      this.trouble = error instanceof Error ? error.message : String(error);
      return false;
    }
    return this.trouble === null;
  }

  take(answer, begun) {
    const { version, answered_by, at_unix_us, nodes } = fields(answer);
    if (list(nodes).length === 0) throw new Error("the answer is not a status");
    if (amount(version) !== null && version !== VERSION) {
      throw new Error(`the node answers in form ${version}, this page reads ${VERSION}: load the page again`);
    }
    const [name, at] = [words(answered_by) ?? "", amount(at_unix_us)];
    const before = this.seen.get(name);
    if (this.seen.size >= NODES_MAX) this.seen.clear();
    this.seen.set(name, at);
    if (at === null || before === at) {
      if (this.answer === null) this.answer = answer;
      this.trouble = at === null ? "the answer does not say of when it is" : "the node answers, but its status stands still";
      return;
    }
    // A clock that was set back moves as well.
    this.confirmed = before !== undefined;
    this.answer = answer;
    this.movedAt = begun;
    this.trouble = null;
  }

  /**
   * `{state, ageSeconds, trouble}`: `never` answered, `checking` the first answer, `live`, or
   * `stale`. The age is the browser's own count since the request, so it is never too small.
   */
  freshness() {
    if (this.answer === null) return { state: "never", ageSeconds: null, trouble: this.trouble };
    const ageSeconds = this.movedAt === null ? null : Math.max(0, (this.clock() - this.movedAt) / 1000);
    const old = ageSeconds === null || ageSeconds >= AGE_MAX_SECONDS;
    const state = old ? "stale" : this.confirmed ? "live" : "checking";
    return { state, ageSeconds, trouble: this.trouble };
  }

  /** Milliseconds to wait before the next request. */
  pause(begun) {
    const period = this.confirmed || this.trouble !== null ? PERIOD_MS : CONFIRM_MS;
    return Math.max(100, period - (this.clock() - begun));
  }
}

/** The newest status of the node that this page came from. */
export async function askStatus(timeoutMs) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeoutMs);
  try {
    const response = await fetch("/status", { cache: "no-store", credentials: "same-origin", signal: stop.signal });
    if (!response.ok) throw new Error(`the node answers with HTTP ${response.status}`);
    return await response.json();
  } catch (error) {
    if (stop.signal.aborted) throw new Error(`the node has not answered within ${timeoutMs / 1000} s`);
    if (error instanceof SyntaxError) throw new Error("the node's answer is not JSON");
    if (error instanceof TypeError) throw new Error("the node does not answer");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Milliseconds that grow also while the machine sleeps (some browsers' monotonic clock stops) and
 * whenever the wall clock is set forward; they never run backwards.
 */
export function wakefulClock(steady = () => performance.now(), wall = () => Date.now()) {
  let [steadyBefore, wallBefore, total] = [steady(), wall(), 0];
  return () => {
    const [steadyNow, wallNow] = [steady(), wall()];
    total += Math.max(0, steadyNow - steadyBefore, wallNow - wallBefore);
    [steadyBefore, wallBefore] = [steadyNow, wallNow];
    return total;
  };
}
