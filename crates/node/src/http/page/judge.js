// Says in one sentence whether the cluster is fine, and lists everything that is not.
//
// Pure. It rests only on facts in /status and never says anything more favourable than they do:
// what is missing makes the answer "unknown", not "good". It decides nothing for the cluster.

import { amount, fields, flag, list, span, words } from "./values.js";

/** From here on exposure is near its ceiling; the daemon itself begins to slow commits there. */
const CEILING_NEAR = 0.8;
/** A replay this far behind makes a failover noticeably longer; it loses nothing. */
const REPLAY_LAG_MAX_SECONDS = 60;

/** Phases in which it is certain that nobody is active, for a node that hears a majority. */
export const NOBODY_ACTIVE = ["bootstrap", "promoting", "no-active"];

const RANK = { bad: 0, unknown: 1, attention: 2 };

/** `{state, sentence, findings}`: a state word, one sentence, and the rest of what was found. */
export function judge(status) {
  const active = words(status.active);
  const nodes = list(status.nodes).map(fields);
  const holder = nodes.find((node) => active !== null && node.name === active);
  const failover = fields(status.failover);
  const found = [];
  const find = (state, text) => found.push({ state, text });

  const writes = judgeWrites(status, active, holder, find);
  judgeMajority(status, find);
  judgeCommits(status, nodes, writes, find);
  judgeFailover(failover, active, find);
  judgeExposure(status, active, find);
  nodes.forEach((node) => judgeNode(node, active, find));
  judgeOrders(status, failover, find);

  // Stable, so that what was judged first stays first among equals.
  found.sort((a, b) => RANK[a.state] - RANK[b.state]);
  const [worst, ...others] = found;
  const sentence =
    worst === undefined
      ? `${active} accepts writes; ${words(failover.words)}.`
      : writes
        ? `${active} accepts writes, but ${worst.text}.`
        : asSentence(worst.text, nodes);
  const findings = others.map(({ state, text }) => ({ state, text: asSentence(text, nodes) }));
  return { state: worst?.state ?? "good", sentence, findings };
}

/** With a capital, unless it begins with a name: that is written as it is. */
function asSentence(text, nodes) {
  const named = nodes.some((node) => words(node.name) !== null && text.startsWith(node.name));
  const begin = named ? text.charAt(0) : text.charAt(0).toUpperCase();
  return `${begin}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** Whether somebody accepts writes, for certain. */
function judgeWrites(status, active, holder, find) {
  const phase = words(status.phase);
  const why = words(fields(status.failover).words);
  if (active === null) {
    const me = words(status.answered_by) ?? "the node that answers";
    // The others may have an active that this node has not heard of.
    if (status.majority === false) find("bad", `${me} hears no majority, so who is active is unknown here; another node may know`);
    else if (status.majority !== true || !NOBODY_ACTIVE.includes(phase)) find("unknown", "whether anybody accepts writes is unknown");
    else if (phase === "bootstrap") find("attention", "nobody accepts writes yet: the cluster is being founded");
    else find("bad", `nobody accepts writes${why === null ? "" : `: ${why}`}`);
    return false;
  }
  const writable = holder === undefined ? null : flag(holder.writable);
  if (holder?.state === "unreachable") {
    find("bad", `${active} is active but is not heard, so whether it accepts writes is unknown`);
  } else if (writable === null) {
    find("unknown", `whether ${active} accepts writes is unknown`);
  } else if (!writable && phase === "handover") {
    find("attention", `${active} hands over and accepts no writes meanwhile`);
  } else if (!writable) {
    const trouble = words(holder.trouble);
    find("bad", `${active} is active but accepts no writes${trouble === null ? "" : `: ${trouble}`}`);
  } else {
    return true;
  }
  return false;
}

function judgeMajority(status, find) {
  const me = words(status.answered_by) ?? "the node that answers";
  const majority = flag(status.majority);
  if (majority === null) find("unknown", "whether a majority is heard is unknown");
  if (majority === false && words(status.active) !== null) find("bad", `${me}, which answers, hears no majority: another node may know more`);
  if (majority === true && words(status.leader) === null) find("attention", "no leader of the consensus is known");
}

/** Whether commits are acknowledged, and whether they are protected. */
function judgeCommits(status, nodes, writes, find) {
  const mode = words(status.durability);
  const lifted = flag(status.durability_lifted);
  if (mode === null) find("unknown", "the dial in force is unknown");
  if (lifted === null) find("unknown", "whether commits are protected is unknown");
  if (lifted) find("attention", "nobody is waited for: new commits are only where they were made");
  if (!writes || mode !== "zero" || lifted !== false) return;
  const waited = nodes.filter((node) => list(status.waited_for).includes(node.name));
  const needed = amount(status.durable_copies);
  const missing = waited.filter((node) => node.attached !== true);
  if (needed !== null && waited.length - missing.length >= needed) return;
  const names = missing.map((node) => node.name).join(", ");
  // The active may well be connected to somebody whom the answering node does not hear.
  const heard = missing.every((node) => node.attached === false && node.state !== "unreachable");
  if (needed !== null && heard) find("bad", `commits wait, because ${names} does not follow`);
  else find("unknown", `whether commits are acknowledged is unknown${names === "" ? "" : `: ${names} is not seen to follow`}`);
}

function judgeFailover(failover, active, find) {
  const would = flag(failover.would_fail_over);
  const why = words(failover.words);
  if (would === null) find("unknown", "whether a loss of the active would be answered is unknown");
  else if (why === null) find("unknown", "why a failover would or would not happen is unknown");
  else if (!would && active !== null) find("attention", `a loss of the active would not be answered: ${why}`);
}

function judgeExposure(status, active, find) {
  if (active === null) return;
  const exposure = amount(status.exposure_seconds);
  const ceiling = amount(status.rpo_ceiling_seconds);
  if (exposure === null) find("unknown", "how much would be lost now is unknown");
  if (status.durability !== "bounded") return;
  if (ceiling === null) {
    find("unknown", "the ceiling of exposure is unknown");
  } else if (exposure !== null && exposure >= ceiling) {
    find("bad", `exposure, ${span(exposure)}, has reached its ceiling of ${span(ceiling)}`);
  } else if (exposure !== null && exposure >= CEILING_NEAR * ceiling) {
    find("attention", `exposure, ${span(exposure)}, is near its ceiling of ${span(ceiling)}`);
  }
}

/** One finding a node, the one that explains the others; what it warns of comes on top. */
function judgeNode(node, active, find) {
  const name = words(node.name) ?? "a node";
  const follows = node.role === "passive" || node.role === "journal";
  const { mark, trouble } = { mark: words(node.mark), trouble: words(node.trouble) };
  const lag = amount(node.replay_lag_seconds);
  if (words(node.state) === null || words(node.role) === null) find("unknown", `how ${name} is, is unknown`);
  else if (node.state === "unreachable" && node.name !== active) find("attention", `${name} is not heard`);
  else if (node.state === "unreachable") return; // Said with the writes.
  else if (mark !== null) find("attention", `${name} must not be promoted: ${mark}`);
  else if (trouble !== null && (node.name !== active || node.writable)) find("attention", `${name}: ${trouble}`);
  else if (follows && node.attached === false && active !== null) find("attention", `${name} does not follow the active`);
  else if (follows && flag(node.attached) === null) find("unknown", `whether ${name} follows the active is unknown`);
  else if (node.kind === "data" && node.postgres_running === false) find("attention", `PostgreSQL does not answer at ${name}`);
  else if (lag !== null && lag >= REPLAY_LAG_MAX_SECONDS) find("attention", `${name} replays ${span(lag)} behind, which a failover would wait for`);
  list(node.warnings).filter(words).forEach((warning) => find("attention", `${name}: ${warning}`));
  const delay = amount(node.release_delay_seconds);
  if (delay !== null && delay > 0) find("attention", `${name} slows commits by ${span(delay)}, to keep below the ceiling`);
}

/** What operators ordered and what is not in force yet. */
function judgeOrders(status, failover, find) {
  if (amount(status.paused_until_unix_us) !== null && failover.reason !== "paused") {
    find("attention", "automatic failover is paused");
  }
  const wanted = words(fields(status.dial).mode);
  if (wanted !== null && wanted !== status.durability) find("attention", `the dial is set to ${wanted}, which is not in force yet`);
  for (const order of list(status.operations).map(fields)) {
    if (order.outcome === "running") find("attention", `${words(order.kind) ?? "an operation"} ${words(order.what) ?? ""}`.trim() + " is under way");
  }
}
