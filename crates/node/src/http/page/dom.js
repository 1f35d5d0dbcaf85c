// Puts the view into the document.
//
// Only shows: every word is the model's or says how old the figures are. What is not the present is
// marked before anything else is drawn, so that a mistake further down cannot make it look present.

import { fill, h, piece, svg } from "./elements.js";
import { drawPlot } from "./plots.js";
import { span } from "./values.js";

/** A shape for each state, because colours alone say nothing to many. */
const SIGNS = { good: "✓", attention: "!", bad: "✕", unknown: "?", told: "i" };
/** So many of the newest events are not folded away. */
const EVENTS_SHOWN = 6;
const COPY = "Copy";
/** What the copy button says; for a moment it says what became of a click. */
let copyLabel = COPY;
const COPY_TOLD_MS = 3000;

/** Everything; `shown` is the view of the newest answer or null, `now` is on the history's clock. */
export function render(page, shown, history, freshness, now) {
  renderFreshness(page, shown, freshness);
  if (shown === null) return;
  const put = (id, ...children) => fill(page.getElementById(id), children);
  put("answered", ...answered(shown, freshness));
  put("links", ...shown.links.map(link));
  put("tiles", ...shown.tiles.map((it) => tile(it, freshness)));
  put("nodes", ...shown.nodes.map((it) => card(it, freshness)));
  put("plots", ...shown.plots.map((plot) => drawPlot(plot, history.samples, now)));
  put("validation", ...validation(shown.validation));
  put("events", ...eventList(shown.events));
  put("settings", ...shown.settings.map((group) => h("section", { class: "panel" }, h("h3", {}, group.title), facts(group.facts))));
}

/** What is left to say when drawing failed. */
export function renderFailure(page, error) {
  const trouble = `this page cannot draw the answer: ${error instanceof Error ? error.message : error}`;
  renderFreshness(page, null, { state: "stale", ageSeconds: null, trouble });
}

// --- The headline and how old it is ----------------------------------------------------------------

function renderFreshness(page, shown, { state, ageSeconds, trouble }) {
  const live = state === "live";
  const whole = Math.floor(ageSeconds);
  const age = ageSeconds === null ? "of unknown age" : `${whole < 120 ? `${whole} s` : span(whole)} old`;
  const headline = live && shown !== null ? shown.headline : { state: "unknown", sentence: presence(state), findings: [] };
  page.body.dataset.state = headline.state;
  page.body.classList.toggle("old", !live);
  const note = page.getElementById("stale");
  note.hidden = state !== "stale" && trouble === null;
  fill(note, state === "stale"
    ? [h("strong", {}, `OLD: what is below is ${age}.`), ` ${sentence(trouble ?? "no newer answer came")} It says nothing about now.`]
    : [sentence(trouble ?? "")]);
  fill(page.getElementById("word"), [h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[headline.state]), headline.state]);
  fill(page.getElementById("sentence"), [headline.sentence]);
  fill(page.getElementById("findings"), headline.findings.length === 0 ? [] : [
    h("ul", { class: "findings" }, ...headline.findings.map((it) => h("li", { class: it.state }, badge(it.state), h("span", {}, it.text)))),
  ]);
  speak(page.getElementById("spoken"), `${headline.state}: ${headline.sentence}`);
  page.title = `${live ? headline.state : state === "stale" ? "OLD" : "unknown"} – ${shown?.answeredBy.text ?? "Understudy"} – Understudy`;
}

function presence(state) {
  if (state === "never") return "Nothing is known: no answer has come yet.";
  if (state === "checking") return "Looking whether the first answer is of the present.";
  return "How the cluster is now is unknown: no new answer comes.";
}

/** Told only when it says something else: a figure that moves every second is not worth a word. */
function speak(region, words) {
  const gist = (text) => text.replace(/[0-9]+/g, "#");
  if (gist(region.textContent) !== gist(words)) region.textContent = words;
}

const sentence = (text) => (text === "" ? "" : `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`);

function answered(shown, { state }) {
  return [
    "Answered by ", h("strong", {}, piece(shown.answeredBy)), " at ", piece(shown.answeredAt),
    state === "stale" ? " (old)" : null, h("span", { class: "cluster" }, " · cluster ", piece(shown.cluster)),
  ];
}

function link({ name, here, href }) {
  if (here) return h("li", {}, h("a", { href: "/ui", "aria-current": "page" }, piece(name)));
  if (href === null) return h("li", {}, h("span", { class: "nowhere" }, piece(name), " (address unknown)"));
  return h("li", {}, h("a", { href }, piece(name)));
}

// --- Parts ---------------------------------------------------------------------------------------

const badge = (state, word = state) => h("span", { class: `badge ${state}` }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[state]), word);

const facts = (all) =>
  h("dl", { class: "facts" }, ...all.map((it) => h("div", {}, h("dt", {}, it.label), h("dd", {}, ...it.parts.map(piece)))));

/** A bar; the figures beside it say the same. */
function meter({ share, label }) {
  const percent = Math.round(share * 100);
  const words = percent === 0 && share > 0 ? "<1 %" : `${percent} %`;
  return h("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": percent, "aria-valuetext": words },
    svg("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "rest", width: 100, height: 4 }),
      svg("rect", { class: share >= 0.8 && label.startsWith("Exposure") ? "done near" : "done", width: share * 100, height: 4 })),
    h("span", { class: "percent" }, words));
}

function tile(it, freshness) {
  return h("section", { class: "panel tile" },
    h("h3", {}, it.title),
    h("p", { class: "main" }, ...it.main.map(piece)),
    it.meter ? meter(it.meter) : null,
    facts(it.facts),
    it.remark ? h("p", { class: "remark" }, it.remark) : null,
    it.command ? command(it.command, freshness) : null);
}

/** A command that follows from old figures must not be run: it cannot be copied then. */
function command(part, { state }) {
  return h("div", { class: "command" },
    h("p", {}, "An operator may accept the loss; write the reason into it:"),
    h("pre", { tabindex: "0" }, h("code", {}, piece(part))),
    h("button", { type: "button", class: "copy", disabled: state === "live" ? null : "" }, copyLabel));
}

function card(node, { state }) {
  // What it was is not what it is.
  const condition = state === "live" ? badge(node.state) : badge("unknown", `was ${node.state}`);
  return h("article", { class: `panel card ${node.state}` },
    h("header", { class: "card-head" },
      h("h3", {}, piece(node.name)), condition,
      h("p", { class: "place" }, ...node.place.map(piece), ...node.tags.map((tag) => h("span", { class: "tag" }, piece(tag))))),
    node.progress === null ? null : h("div", { class: "progress" },
      h("p", {}, h("strong", {}, piece(node.progress.what)), ": ", ...node.progress.parts.map(piece)),
      node.progress.meter ? meter(node.progress.meter) : null),
    facts(node.facts),
    node.notes.length === 0 ? null : h("ul", { class: "notes" }, ...node.notes.map((note) =>
      h("li", { class: note.state }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[note.state]),
        h("p", {}, h("strong", {}, `${note.label}: `), ...note.parts.map(piece))))),
    h("details", { class: "addresses" }, h("summary", {}, "Version ", piece(node.version), ", addresses"), facts(node.addresses)));
}

function validation({ facts: about, findings }) {
  const item = (it) => h("li", { class: it.state }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[it.state]),
    h("div", {}, h("p", {}, h("strong", {}, ...it.title.map(piece))), h("p", {}, ...it.words.map(piece)), h("p", {}, ...it.remedy.map(piece))));
  return [
    h("div", { class: "panel" }, facts(about)),
    findings.length === 0 ? null : h("ul", { class: "panel notes" }, ...findings.map(item)),
  ];
}

function eventList(all) {
  if (all.length === 0) return [h("p", { class: "panel" }, "Nothing is recorded: no promotion, no operation.")];
  const item = (it) => h("li", {},
    h("p", { class: "when" }, ...it.when.map(piece)),
    h("div", {}, h("p", { class: "title" }, ...it.title.map(piece), " ", badge(it.state, it.word)),
      ...it.lines.map((line) => h("p", { class: "line" }, ...line.map(piece)))));
  const older = all.slice(EVENTS_SHOWN);
  return [
    h("ol", { class: "panel events" }, ...all.slice(0, EVENTS_SHOWN).map(item)),
    older.length === 0 ? null : h("details", { class: "panel" }, h("summary", {}, `${older.length} older`), h("ol", { class: "events" }, ...older.map(item))),
  ];
}

// --- What a person does --------------------------------------------------------------------------

/** Listens once for the whole document, because buttons come and go with the answers. */
export function bind(page) {
  page.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button.copy");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    copyLabel = (await copy(code)) ? "Copied" : "Selected: copy it with the keyboard";
    button.textContent = copyLabel;
    setTimeout(() => {
      copyLabel = COPY;
    }, COPY_TOLD_MS);
  });
}

/** Plain HTTP has no clipboard API in most browsers; there the old way is tried. */
async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    window.getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}
