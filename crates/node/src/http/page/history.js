// What the plots show of the past: the values of earlier answers, in this browser's memory only.
//
// Bounded. Keeps an absent value as absent: a gap, never a line through it. Invents nothing between
// answers, and forgets all when another node answers, since that sees the cluster differently.

/** How far back a plot reaches at most. */
export const SPAN_MAX_SECONDS = 900;
/** More only if somebody asks more often than once a second. */
const SAMPLES_MAX = 1800;

export class History {
  constructor() {
    this.samples = [];
    this.answeredBy = null;
  }

  /** Remembers the lines of `plots` as of `seconds`, on whatever clock, always the same one. */
  add(seconds, answeredBy, epoch, plots) {
    if (answeredBy !== this.answeredBy) this.samples = [];
    this.answeredBy = answeredBy;
    const values = new Map(plots.flatMap((plot) => plot.lines.map((line) => [line.key, line.value])));
    this.samples.push({ seconds, epoch, values });
    while (this.samples.length > SAMPLES_MAX || this.samples[0].seconds < seconds - SPAN_MAX_SECONDS) {
      this.samples.shift();
    }
  }
}
