// Draws a plot as SVG from the remembered values.
//
// Pure but for making elements. Unknown stretches are grey bands, not lines; a limit that is far off
// the scale is only named. The drawing is stretched to its box, therefore it holds no text: scales
// and figures are HTML around it, and the table below says in figures what the lines say.

import { SPAN_MAX_SECONDS } from "./history.js";
import { h, piece, svg } from "./elements.js";
import { UNKNOWN, size, span } from "./values.js";

const WIDTH = 600;
const HEIGHT = 150;
/** Without an answer for so long, what was in between is not known. */
const GAP_SECONDS = 2.6;
/** The first that holds all that is remembered is shown. */
const WINDOWS_SECONDS = [60, 120, 180, 300, 600, SPAN_MAX_SECONDS];
/** A full scale is never less, so that a calm cluster looks calm. */
const SCALE_MIN = { seconds: 1, bytes: 65536 };
/** A limit is drawn when it is at most so many times the highest value. */
const LIMIT_NEAR = 4;

const say = { seconds: span, bytes: size };

/** `plot` is one of the view's; `now` is on the clock of the samples. */
export function drawPlot(plot, samples, now) {
  const first = samples[0]?.seconds ?? now;
  const width = WINDOWS_SECONDS.find((seconds) => now - first <= seconds) ?? SPAN_MAX_SECONDS;
  const from = now - width;
  const seen = samples.filter((sample) => sample.seconds >= from);
  const values = (line) => seen.map((sample) => sample.values.get(line.key) ?? null);
  const highest = Math.max(0, ...plot.lines.flatMap(values).filter((value) => value !== null));
  const limit = plot.limit ?? null;
  const drawn = limit !== null && limit.value <= LIMIT_NEAR * highest ? limit : null;
  const top = roundUp(Math.max(highest, drawn?.value ?? 0), plot.unit);
  const x = (seconds) => (WIDTH * (seconds - from)) / width;
  const y = (value) => HEIGHT * (1 - value / top);

  const picture = svg("svg", { class: "lines", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...unknownBands(plot, seen, from, now).map(([a, b]) =>
      svg("rect", { class: "band", x: round(x(a)), y: 0, width: round(x(b) - x(a)), height: HEIGHT })),
    ...[0.5, 0].map((share) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * share, y2: HEIGHT * share })),
    ...epochChanges(seen).map((at) => svg("line", { class: "epoch", x1: round(x(at)), x2: round(x(at)), y1: 0, y2: HEIGHT })),
    ...(drawn === null ? [] : [svg("line", { class: "limit", x1: 0, x2: WIDTH, y1: round(y(drawn.value)), y2: round(y(drawn.value)) })]),
    ...plot.lines.map((line) => svg("path", { class: stroke(line), d: path(seen, line.key, x, y) })));

  return h("figure", { class: "plot", "aria-labelledby": `plot-${plot.id}` },
    h("figcaption", {}, h("h3", { id: `plot-${plot.id}` }, plot.title)),
    h("div", { class: "canvas" },
      h("div", { class: "scale", "aria-hidden": "true" }, ...[1, 0.5, 0].map((share) => h("span", {}, say[plot.unit](top * share)))),
      picture,
      h("div", { class: "times", "aria-hidden": "true" }, h("span", {}, `${span(width)} ago`), h("span", {}, "now"))),
    legend(plot, values, limit, drawn));
}

const stroke = (line) => `line hue-${line.hue % 5}${line.dashed ? " dashed" : ""}`;
const round = (number) => Math.round(number * 10) / 10;

function legend(plot, values, limit, drawn) {
  const row = (line) => {
    const known = values(line).filter((value) => value !== null);
    const bound = (pick) => (known.length === 0 ? h("span", { class: "told unknown" }, UNKNOWN) : say[plot.unit](pick(...known)));
    const swatch = svg("svg", { class: "swatch", viewBox: "0 0 24 8", "aria-hidden": "true" },
      svg("path", { class: stroke(line), d: "M0 4H24" }));
    return h("tr", {},
      h("th", { scope: "row" }, swatch, line.label),
      h("td", {}, piece(line.now)), h("td", {}, bound(Math.min)), h("td", {}, bound(Math.max)));
  };
  const head = ["Line", "Now", "Lowest", "Highest"].map((title) => h("th", { scope: "col" }, title));
  const rows = plot.lines.length > 0
    ? plot.lines.map(row)
    : [h("tr", {}, h("td", { colspan: "4" }, "Whose it would be is unknown."))];
  const remark = limit === null ? null : `${limit.label} ${say[plot.unit](limit.value)}${drawn === null ? ", far above this scale" : ", the dash-dotted line"}`;
  return h("div", {},
    h("table", {},
      h("caption", { class: "hidden-but-read" }, `${plot.title}, in figures`),
      h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)),
    remark === null ? null : h("p", { class: "remark" }, `${remark.charAt(0).toUpperCase()}${remark.slice(1)}.`));
}

/** One path; begins anew after whatever is unknown. */
function path(seen, key, x, y) {
  let [text, before] = ["", null];
  for (const sample of seen) {
    const value = sample.values.get(key) ?? null;
    if (value !== null) {
      const joined = before !== null && sample.seconds - before <= GAP_SECONDS;
      const [px, py] = [round(x(sample.seconds)), round(y(value))];
      // A point of its own is a line of no length, which the round cap makes a dot.
      text += joined ? `L${px} ${py}` : `M${px} ${py}h0`;
    }
    before = value === null ? null : sample.seconds;
  }
  return text;
}

/** Stretches in which no line is known, the time before the page was open apart. */
function unknownBands(plot, seen, from, now) {
  const bands = [];
  const known = seen.filter((sample) => plot.lines.some((line) => (sample.values.get(line.key) ?? null) !== null));
  let edge = seen[0]?.seconds ?? now;
  for (const moment of [...known.map((sample) => sample.seconds), now]) {
    if (moment - edge > GAP_SECONDS) bands.push([Math.max(edge, from), moment]);
    edge = moment;
  }
  return bands;
}

function epochChanges(seen) {
  return seen.filter((sample, index) => index > 0 && sample.epoch !== seen[index - 1].epoch).map((sample) => sample.seconds);
}

/** The next round figure, so that the scale does not tremble. */
function roundUp(value, unit) {
  const wanted = Math.max(value * 1.05, SCALE_MIN[unit]);
  if (unit === "bytes") return 2 ** Math.ceil(Math.log2(wanted));
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 4, 6, 10].map((step) => step * power).find((step) => step >= wanted);
}
