// Checks the status page's modules in a real browser, against the fixtures.
//
// Renders into a document of its own, made from the page's index.html, so that what is checked is what
// an operator sees. Each piece of text there carries the paths in /status that it was made of
// (`data-from`): so for every value it can be seen what the page says when it is taken away.

import { render } from "../../crates/node/src/http/page/dom.js";
import { AGE_MAX_SECONDS, Feed, wakefulClock } from "../../crates/node/src/http/page/feed.js";
import { History, SPAN_MAX_SECONDS } from "../../crates/node/src/http/page/history.js";
import { view } from "../../crates/node/src/http/page/model.js";
import { drawPlot } from "../../crates/node/src/http/page/plots.js";
import { ago, moment, size, span } from "../../crates/node/src/http/page/values.js";

const FIXTURES = ["healthy", "lagging", "failed-over", "no-majority", "loss-to-accept"];
const HEADLINES = {
  healthy: ["good", "north accepts writes; if the active is lost, south takes over by itself."],
  lagging: ["attention", "north accepts writes, but "],
  "failed-over": ["attention", "south accepts writes, but "],
  "no-majority": ["bad", "south hears no majority, so who is active is unknown here"],
  "loss-to-accept": ["bad", "Nobody accepts writes: south may not be promoted"],
};
const LIVE = { state: "live", ageSeconds: 0.2, trouble: null };
const MARKUP = '<b>bold</b><script>document.title="pwned"</script>';

/** Fields whose absence says something: defined so in status/mod.rs. There the text goes away. */
const ABSENCE_SAYS = [
  /^paused_until_unix_us$/, // no pause
  /^operations\[\d+\]\.(what|detail)$/, // nothing to add
  /^nodes\[\d+\]\.(mark|trouble|warnings|progress|newest_receipt|release_delay_seconds|leader)$/, // none
  /^failover\.accept_command$/, // no command would help
  /^validation\.findings\[\d+\]\.node$/, // about the cluster
];
/** Positions of another role, a former one mostly: shown while they are told, not missed otherwise. */
const OTHER_ROLES = { active: ["durable_lsn", "replay_lsn"], passive: ["flush_lsn", "released_lsn"] };
function absenceSays(status, path) {
  const [, index, field] = /^nodes\[(\d+)\]\.(\w+)$/.exec(path) ?? [];
  const other = field !== undefined && OTHER_ROLES[status.nodes[index].role]?.includes(field);
  return other || ABSENCE_SAYS.some((it) => it.test(path));
}

const page = await (await fetch("../../crates/node/src/http/page/index.html")).text();
const load = async (name) => (await fetch(`fixtures/${name}.json`)).json();
const fixtures = Object.fromEntries(await Promise.all(FIXTURES.map(async (name) => [name, await load(name)])));

const failures = [];
let passed = 0;
function check(holds, what) {
  if (holds) passed += 1;
  else failures.push(what);
}
const equal = (is, should, what) => check(Object.is(is, should), `${what}: ${JSON.stringify(is)}, not ${JSON.stringify(should)}`);

// --- Helpers -------------------------------------------------------------------------------------

/** The page as it looks with this answer. */
function shownWith(status, freshness = LIVE) {
  const frame = new DOMParser().parseFromString(page, "text/html");
  const shown = view(status, "http:");
  const history = new History();
  history.add(10, "south", "3", shown.plots);
  render(frame, shown, history, freshness, 11);
  return frame;
}

const pieces = (frame, path) => [...frame.querySelectorAll("[data-from]")].filter((piece) => piece.dataset.from.split(" ").includes(path));

/** Every path below `value` with what is there: `nodes[1].durable_lsn`. */
function paths(value, path = "") {
  if (Array.isArray(value)) return value.flatMap((item, index) => [[`${path}[${index}]`, item], ...paths(item, `${path}[${index}]`)]);
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([name, item]) => {
    const to = path === "" ? name : `${path}.${name}`;
    return [[to, item], ...paths(item, to)];
  });
}

/** A copy with `change(holder, key)` done at the path. */
function changed(status, path, change) {
  const copy = structuredClone(status);
  const keys = path.match(/[^.[\]]+/g);
  const last = keys.pop();
  change(keys.reduce((holder, key) => holder[key], copy), last);
  return copy;
}
const without = (status, path) => changed(status, path, (holder, key) => delete holder[key]);
const replaced = (status, path, value) => changed(status, path, (holder, key) => { holder[key] = value; });

function quietly(what, run) {
  try {
    return run();
  } catch (error) {
    failures.push(`${what}: ${error}`);
    return null;
  }
}

const saysUnknown = (found) => found.length > 0 && found.every((piece) => /\bunknown\b/.test(piece.textContent));

// --- What is absent is unknown -------------------------------------------------------------------

for (const [name, status] of Object.entries(fixtures)) {
  const full = shownWith(status);
  for (const [path, value] of paths(status)) {
    if (path.endsWith("]")) continue; // What is left of a list is another list, nothing unknown.
    const leaf = typeof value !== "object";
    const before = pieces(full, path);
    if (typeof value === "number") check(before.length > 0, `${name}: ${path} is not on the page`);
    const frame = quietly(`${name} without ${path}`, () => shownWith(without(status, path)));
    if (frame === null) continue;
    const after = pieces(frame, path);
    if (absenceSays(status, path)) check(after.length === 0, `${name}: ${path} is still shown without it`);
    else if (leaf && before.length > 0) check(saysUnknown(after), `${name} without ${path} says: ${after.map((it) => it.textContent).join(" | ") || "nothing"}`);
    for (const wrong of [null, {}, [], "", typeof value === "number" ? "7" : 7, -1]) {
      const odd = quietly(`${name}, ${path} = ${JSON.stringify(wrong)}`, () => shownWith(replaced(status, path, wrong)));
      if (odd !== null && typeof value === "number") check(saysUnknown(pieces(odd, path)), `${name}: ${path} = ${JSON.stringify(wrong)} is not unknown`);
    }
  }
}
for (const nonsense of [null, 7, "x", [], {}, { nodes: [null, 7] }]) quietly(`an answer ${JSON.stringify(nonsense)}`, () => shownWith(nonsense));
check(!/(^|[^\d.])0 (s|B)\b/.test(shownWith({ nodes: [{}] }).body.innerText), "of nothing known something is 0");

// --- The headline --------------------------------------------------------------------------------

for (const [name, [state, begin]] of Object.entries(HEADLINES)) {
  const frame = shownWith(fixtures[name]);
  equal(frame.body.dataset.state, state, `${name}: state`);
  const sentence = frame.getElementById("sentence").textContent;
  check(sentence.startsWith(begin), `${name}: the headline is: ${sentence}`);
  check(frame.getElementById("word").textContent.includes(state), `${name}: the state has no word`);
  check(frame.getElementById("answered").textContent.includes(fixtures[name].answered_by), `${name}: who answered is not said`);
}
const NEEDED = [
  "active", "majority", "leader", "durability", "durability_lifted", "exposure_seconds", "rpo_ceiling_seconds",
  "failover", "failover.would_fail_over", "failover.words", "nodes", "nodes[0].writable", "nodes[0].role", "nodes[1].attached", "nodes[1].state",
];
for (const path of NEEDED) {
  const state = shownWith(without(fixtures.healthy, path)).body.dataset.state;
  check(state !== "good", `without ${path} the cluster is called ${state}`);
}
const UNFAVOURABLE = {
  majority: false, "nodes[0].writable": false, "failover.would_fail_over": false, durability_lifted: true, exposure_seconds: 3600,
  "nodes[1].attached": false, "nodes[1].state": "unreachable", "nodes[0].state": "unreachable", "nodes[2].state": "unreachable",
  "nodes[1].postgres_running": false, "nodes[1].replay_lag_seconds": 600, paused_until_unix_us: 1, "dial.mode": "zero",
};
for (const [path, value] of Object.entries(UNFAVOURABLE)) {
  const state = shownWith(replaced(fixtures.healthy, path, value)).body.dataset.state;
  check(["attention", "bad"].includes(state), `with ${path} = ${value} the cluster is called ${state}`);
}
const zero = replaced(replaced(fixtures.healthy, "durability", "zero"), "nodes[1].attached", false);
equal(shownWith(zero).body.dataset.state, "bad", "commits wait in zero for a passive that does not follow");

// What a node that is not heard was is not what it is.
const silent = pieces(shownWith(fixtures["failed-over"]), "nodes[0].postgres_running");
check(saysUnknown(silent), "PostgreSQL of a node that is not heard is not unknown");

// --- What others wrote is text -------------------------------------------------------------------

for (const [name, status] of Object.entries(fixtures)) {
  const full = shownWith(status);
  for (const [path, value] of paths(status)) {
    if (typeof value !== "string") continue;
    const frame = quietly(`${name}, markup as ${path}`, () => shownWith(replaced(status, path, MARKUP)));
    if (frame === null) continue;
    check(frame.body.querySelector("b, script, iframe, img, [style]") === null, `${name}: markup as ${path} becomes elements`);
    if (pieces(full, path).length > 0) check(pieces(frame, path).some((piece) => piece.textContent.includes(MARKUP)), `${name}: markup as ${path} is not shown as text`);
  }
}
for (const address of ["javascript:alert(1)", "x:1/../../status", "evil.example/x?:80", "a b:80", "//evil:1"]) {
  const frame = shownWith(replaced(fixtures.healthy, "nodes[0].http_address", address));
  const hrefs = [...frame.querySelectorAll("#links a")].map((it) => it.getAttribute("href"));
  check(hrefs.every((href) => !href.includes(address)), `a link leads to ${address}`);
}
const hrefs = [...shownWith(fixtures.healthy).querySelectorAll("#links a")].map((it) => it.getAttribute("href"));
equal(hrefs.join(" "), "http://north.example.org:7480/ui /ui http://witness.example.org:7480/ui", "links to the nodes");
equal(document.title, "running", "the title while the checks run");

// --- What is old is marked -----------------------------------------------------------------------

let now = 0;
let answer = () => structuredClone(fixtures.healthy);
const feed = new Feed(async () => answer(), () => now);
async function after(milliseconds, what) {
  now += milliseconds;
  answer = what;
  await feed.poll();
  return feed.freshness().state;
}
const at = (offset, rest = {}) => () => ({ ...fixtures.healthy, at_unix_us: fixtures.healthy.at_unix_us + offset, ...rest });
const lost = () => { throw new Error("the node does not answer"); };
equal(feed.freshness().state, "never", "before the first answer");
equal(await after(0, lost), "never", "when there is no answer at all");
equal(await after(1000, at(0)), "checking", "one answer alone");
equal(await after(300, at(300000)), "live", "a second one that moved");
equal(await after(1000, lost), "live", "one lost answer");
equal(await after(AGE_MAX_SECONDS * 1000, lost), "stale", "no answer for some seconds");
equal(feed.freshness().ageSeconds, AGE_MAX_SECONDS + 1, "its age counts from the request that brought it");
equal(await after(1000, at(9000000)), "live", "an answer again");
for (let second = 0; second < AGE_MAX_SECONDS; second += 1) await after(1000, at(9000000));
equal(feed.freshness().state, "stale", "a node that answers and stands still");
check(feed.freshness().trouble.includes("stands still"), "that it stands still is not said");
equal(await after(1000, at(-5000000)), "live", "a clock that was set back still moves");
now += AGE_MAX_SECONDS * 1000;
equal(feed.freshness().state, "stale", "while a request hangs");
equal(await after(0, at(1, { version: 2 })), "stale", "a form that this page does not read");
equal(await after(0, () => ({})), "stale", "an answer that is no status");
equal(await after(0, at(5, { at_unix_us: undefined })), "stale", "an answer without a moment");
equal(await after(0, at(6, { answered_by: "north" })), "checking", "another node's first answer");

const old = shownWith(fixtures["loss-to-accept"], { state: "stale", ageSeconds: 14.7, trouble: "the node does not answer" });
equal(old.body.dataset.state, "unknown", "the state word of old figures");
check(old.body.classList.contains("old"), "old figures are not greyed");
check(!old.getElementById("stale").hidden && old.getElementById("stale").textContent.includes("OLD: what is below is 14 s old"), "the age of old figures is not said");
check(old.title.startsWith("OLD"), "the title of old figures");
check(old.querySelector("button.copy").disabled, "an old command can be copied");
check(old.getElementById("sentence").textContent.includes("unknown"), "old figures have a headline of the present");
check(!shownWith(fixtures["loss-to-accept"]).querySelector("button.copy").disabled, "the command cannot be copied");
check(shownWith(fixtures.healthy).getElementById("stale").hidden, "figures of the present are called old");
check(shownWith(fixtures.healthy, { ...LIVE, state: "checking" }).body.classList.contains("old"), "an unconfirmed answer looks like the present");

let [steady, wall] = [0, 0];
const clock = wakefulClock(() => steady, () => wall);
wall = 7200000;
equal(clock(), 7200000, "time passes while the machine sleeps");
[steady, wall] = [1000, 0];
equal(clock(), 7201000, "a wall clock that is set back stops nothing");

// --- The live region, plots and figures ----------------------------------------------------------

const frame = shownWith(fixtures.healthy);
const spoken = frame.getElementById("spoken");
equal(spoken.textContent, `good: ${HEADLINES.healthy[1]}`, "what is read out");
equal(frame.querySelectorAll("[aria-live]").length, 1, "live regions");

// What a person does meanwhile outlives the next answer.
const title = frame.querySelector(".card h3 .told").firstChild;
const folded = frame.querySelector("details");
folded.setAttribute("open", "");
const later = view(replaced(fixtures.healthy, "nodes[0].heard_seconds_ago", 7));
render(frame, later, { samples: [] }, LIVE, 12);
check(frame.querySelector(".card h3 .told").firstChild === title, "text that did not change is replaced, and a selection lost");
check(frame.querySelector("details") === folded && folded.hasAttribute("open"), "what was folded open closes");
check(frame.body.textContent.includes("7.0 s ago"), "text that changed is not replaced");

const history = new History();
const plotsOf = (status) => view(status).plots;
const gone = without(fixtures.healthy, "nodes[1].durable_lag_seconds");
[[0, fixtures.healthy], [1, fixtures.healthy], [2, gone], [3, fixtures.healthy], [9, fixtures.healthy]].forEach(
  ([seconds, status]) => history.add(seconds, "south", "3", plotsOf(status)));
const drawing = drawPlot(plotsOf(fixtures.healthy)[0], history.samples, 9);
const [durable, replay] = [...drawing.querySelectorAll(".lines path")].map((it) => it.getAttribute("d"));
equal(durable.match(/M/g).length, 3, "a line goes on through an unknown value or a time without answers");
equal(replay.match(/M/g).length, 2, "a line goes on through a time without answers");
equal(drawing.querySelectorAll(".band").length, 1, "grey bands for the time without answers");
for (let seconds = 10; seconds < 5000; seconds += 1) history.add(seconds, "south", "3", []);
check(history.samples.length <= SPAN_MAX_SECONDS + 1, "the history grows without a bound");
history.add(5000, "north", "3", []);
equal(history.samples.length, 1, "another node's answers are mixed with the former one's");

for (const [seconds, words] of [[0, "0 s"], [0.0004, "<1 ms"], [0.25, "250 ms"], [0.9999, "1.0 s"], [9.96, "10 s"], [3600, "60 min"], [7200, "2.0 h"], [864000, "10.0 d"]]) equal(span(seconds), words, `span of ${seconds}`);
for (const [bytes, words] of [[0, "0 B"], [1023, "1023 B"], [2048, "2.0 KiB"], [3 * 2 ** 40, "3.0 TiB"]]) equal(size(bytes), words, `size of ${bytes}`);
equal(moment(1700000000000000), "2023-11-14 22:13:20Z", "a moment");
equal(ago(null, 5), null, "how long ago, without knowing when");

const result = { passed, failed: failures.length, failures: failures.slice(0, 40) };
document.getElementById("result").textContent = JSON.stringify(result, null, 1);
document.title = failures.length === 0 ? "passed" : "failed";
