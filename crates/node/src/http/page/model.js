// The view: every word and number of the page, made from one answer of GET /status.
//
// Pure: the parsed JSON in, plain values out; no DOM, no clock. Pieces of text carry the paths in the
// JSON that they were made of (`shown` in values.js). A field that a node of that role does not have
// is left out; one that it should have and that is absent is "unknown".

import { NOBODY_ACTIVE, judge } from "./judge.js";
import { ago, amount, epoch, fields, flag, list, moment, shown, size, span, told, words } from "./values.js";

/** The form of the JSON that this page reads; STATUS_VERSION in status/mod.rs. */
export const VERSION = 1;

/** Everything to show. `scheme` is `http:` or `https:`, for the links to the other nodes. */
export function view(answer, scheme = "http:") {
  const status = fields(answer);
  const nodes = list(status.nodes).map(fields);
  return {
    cluster: told("cluster", words(status.cluster), (id) => id),
    answeredBy: shown("answered_by", words(status.answered_by)),
    answeredAt: told("at_unix_us", amount(status.at_unix_us), moment),
    headline: judge(status),
    links: links(status, nodes, scheme),
    tiles: [activeTile(status), failoverTile(status), exposureTile(status), leaseTile(status, nodes)],
    nodes: nodes.map((node, index) => card(status, node, `nodes[${index}]`)),
    plots: plots(status, nodes),
    validation: validation(status),
    events: events(status),
    settings: settings(status),
  };
}

const text = (from, value) => shown(from, words(value));
const yesNo = (from, value, yes = "yes", no = "no") => told(from, flag(value), (is) => (is ? yes : no));
const fact = (label, ...parts) => ({ label, parts });

/** How long before the answer a moment was, and the moment. */
function when(from, value, status) {
  const then = amount(value);
  const now = amount(status.at_unix_us);
  if (then === null) return [shown([from], null)];
  return [shown([from, "at_unix_us"], ago(then, now)), ", ", { ...told(from, then, moment), whole: true }];
}

/** Two measures of the same thing, which mostly are known or unknown together. */
function both(seconds, bytes, secondsFrom, bytesFrom) {
  const [time, count] = [amount(seconds), amount(bytes)];
  if (time === null && count === null) return [shown([secondsFrom, bytesFrom], null)];
  return [told(secondsFrom, time, span), " · ", told(bytesFrom, count, size)];
}

function names(from, value) {
  if (!Array.isArray(value)) return shown(from, null);
  const known = value.filter((name) => words(name) !== null);
  return shown(from, known.length === 0 ? "nobody" : known.join(", "));
}

/** Only what is plainly a host with a port becomes a link: the text is the other node's word. */
const ADDRESS = /^(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$/;

function links(status, nodes, scheme) {
  return nodes.map((node, index) => {
    const address = words(node.http_address);
    return {
      name: text(`nodes[${index}].name`, node.name),
      here: words(node.name) !== null && node.name === status.answered_by,
      href: address !== null && ADDRESS.test(address) ? `${scheme}//${address}/ui` : null,
    };
  });
}

// --- Tiles ---------------------------------------------------------------------------------------

function activeTile(status) {
  const active = words(status.active);
  const promoted = list(status.lineage).length - 1;
  const newest = fields(list(status.lineage)[promoted]);
  // Absent is "nobody" only where the phase says so, and a majority is heard that would know of one.
  const nobody = status.majority === true && NOBODY_ACTIVE.includes(status.phase);
  const holder = list(status.nodes).map(fields).findIndex((node) => active !== null && node.name === active);
  const node = fields(list(status.nodes)[holder]);
  const facts = [
    ...(holder < 0 ? [] : [fact("Accepts writes", yesNo(`nodes[${holder}].writable`, present(node, node.writable)))]),
    fact("Writable since", ...when("writable_since_unix_us", status.writable_since_unix_us, status)),
  ];
  if (promoted >= 0) {
    facts.push(fact("Promoted", ...when(`lineage[${promoted}].at_unix_us`, newest.at_unix_us, status)));
  }
  return { title: "Active", main: [shown("active", active ?? (nobody ? "nobody" : null))], facts };
}

/** What the command line says as well, when no majority is heard. */
const ALONE =
  "If the others will not come back: on the data node that survived, with its daemon stopped, " +
  "`understudy recover --sole-survivor --dry-run --config FILE` says what it would cost.";

function failoverTile(status) {
  const { would_fail_over, words: why, reason, accept_command } = fields(status.failover);
  return {
    title: "Would a failover work now?",
    main: [yesNo("failover.would_fail_over", would_fail_over, "Yes", "No")],
    facts: [
      fact("Why", text("failover.words", why), " (", text("failover.reason", reason), ")"),
      fact("Eligible", names("eligible", status.eligible)),
      ...pause(status),
    ],
    remark: status.majority === false ? ALONE : null,
    command: words(accept_command) === null ? null : text("failover.accept_command", accept_command),
  };
}

/** Absent means that there is no pause: so it is defined. */
function pause(status) {
  if (status.paused_until_unix_us === undefined) return [];
  return [fact("Paused until", ...when("paused_until_unix_us", status.paused_until_unix_us, status))];
}

function exposureTile(status) {
  const exposure = amount(status.exposure_seconds);
  const ceiling = amount(status.rpo_ceiling_seconds);
  const bounded = status.durability === "bounded";
  return {
    title: "Would be lost now",
    main: both(status.exposure_seconds, status.exposure_bytes, "exposure_seconds", "exposure_bytes"),
    meter: exposure === null || ceiling === null || ceiling === 0
      ? null
      : { share: Math.min(exposure / ceiling, 1), label: "Exposure as a share of its ceiling" },
    facts: [
      bounded || ceiling !== null
        ? fact("Ceiling", told("rpo_ceiling_seconds", ceiling, span))
        : fact("Ceiling", words(status.durability) === null ? shown([], null) : "none in this mode"),
      fact("Dial in force", text("durability", status.durability)),
      fact("Waited for", names("waited_for", status.waited_for)),
      fact("Copies needed", told("durable_copies", amount(status.durable_copies), String)),
      fact("Lifted", yesNo("durability_lifted", status.durability_lifted, "yes: nobody is waited for")),
    ],
  };
}

function leaseTile(status, nodes) {
  const index = nodes.findIndex((node) => words(status.active) !== null && node.name === status.active);
  const from = index < 0 ? [] : `nodes[${index}].lease_left_seconds`;
  const left = index < 0 ? null : amount(nodes[index].lease_left_seconds);
  return {
    title: "Lease left",
    main: [told(from, left, span)],
    facts: [
      fact("Phase", text("phase", status.phase)),
      fact("Epoch", told(["epoch.incarnation", "epoch.number"], epoch(status.epoch), (it) => it)),
      fact("Leader", text("leader", status.leader)),
      fact("Majority", yesNo("majority", status.majority, "heard", "not heard")),
    ],
  };
}

// --- Validation ----------------------------------------------------------------------------------

const SEVERITIES = { block: "bad", risk: "attention", note: "told" };

/** What the answering node found when it last looked whether a failover would work. */
function validation(status) {
  const report = fields(status.validation);
  const at = (field) => `validation.${field}`;
  const [seconds, bytes] = ["expected_loss_seconds", "expected_loss_bytes"];
  return {
    facts: [
      fact("Verdict", text(at("verdict"), report.verdict)),
      fact("Looked", ...when(at("at_unix_us"), report.at_unix_us, status)),
      fact("Judged by", text(at("judged_by"), report.judged_by)),
      fact("Outage, at most", told(at("expected_outage_seconds"), amount(report.expected_outage_seconds), span)),
      fact("Loss", ...both(report[seconds], report[bytes], at(seconds), at(bytes))),
    ],
    findings: list(report.findings).map(fields).map((finding, index) => {
      const of = (field) => text(at(`findings[${index}].${field}`), finding[field]);
      const about = finding.node === undefined ? ["cluster"] : [of("node")];
      return {
        state: Object.hasOwn(SEVERITIES, finding.severity) ? SEVERITIES[finding.severity] : "unknown",
        title: [of("severity"), ", ", ...about, ": ", of("code")],
        words: [of("words")],
        remedy: ["Remedy: ", of("remedy")],
      };
    }),
  };
}

// --- Nodes ---------------------------------------------------------------------------------------

function card(status, node, path) {
  const at = (field) => `${path}.${field}`;
  const here = words(node.name) !== null && node.name === status.answered_by;
  return {
    name: text(at("name"), node.name),
    tags: [
      ...(node.leader === true ? [shown(at("leader"), "leader")] : []),
      ...(here ? [shown("answered_by", "answers this page")] : []),
    ],
    place: [text(at("role"), node.role), " at ", text(at("site"), node.site)],
    ...condition(node),
    facts: [...presence(node, at), ...postgres(node, at), ...positions(node, at)],
    version: text(at("program_version"), node.program_version),
    addresses: addresses(node, at),
    progress: progress(node, at),
    notes: notes(status, node, at),
  };
}

/** A state word for the card. What a node that is not heard was is not what it is. */
function condition(node) {
  const { state, role } = node;
  if (words(state) === null || words(role) === null) return { state: "unknown" };
  if (state === "unreachable") return { state: "bad" };
  if (role === "active" && flag(node.writable) === null) return { state: "unknown" };
  if (role === "active" && !node.writable) return { state: "bad" };
  const follows = role === "passive" || role === "journal";
  if (follows && flag(node.attached) === null) return { state: "unknown" };
  const warned = list(node.warnings).length > 0 || words(node.mark) !== null || words(node.trouble) !== null;
  const silent = node.kind === "data" && node.postgres_running !== true;
  return { state: warned || silent || (follows && !node.attached) ? "attention" : "good" };
}

/** `false` of a node that is not heard only means that nobody knows. */
const present = (node, value) => (node.state === "unreachable" ? null : value);

function presence(node, at) {
  const facts = [
    fact("State", text(at("state"), node.state)),
    fact("Heard", told(at("heard_seconds_ago"), amount(node.heard_seconds_ago), (it) => `${span(it)} ago`)),
  ];
  if (node.role === "active" || node.writable === true) {
    facts.push(fact("Accepts writes", yesNo(at("writable"), present(node, node.writable))));
    facts.push(fact("Lease left", told(at("lease_left_seconds"), amount(node.lease_left_seconds), span)));
  } else if (node.lease_left_seconds !== undefined) {
    facts.push(fact("Lease left", told(at("lease_left_seconds"), amount(node.lease_left_seconds), span)));
  }
  if (node.release_delay_seconds !== undefined) {
    facts.push(fact("Commits slowed by", told(at("release_delay_seconds"), amount(node.release_delay_seconds), span)));
  }
  if (node.role === "passive" || node.role === "journal") {
    facts.push(fact("Follows", yesNo(at("attached"), present(node, node.attached))));
  }
  return facts;
}

function postgres(node, at) {
  if (node.kind === "witness" || node.kind === "journal") return [];
  return [fact("PostgreSQL", yesNo(at("postgres_running"), present(node, node.postgres_running), "answers", "does not answer"))];
}

/** What each role has; something else only where it is told. */
const POSITIONS = {
  active: ["timeline", "flush_lsn", "released_lsn"],
  passive: ["timeline", "durable_lsn", "replay_lsn", "durable_lag", "replay_lag"],
  journal: ["durable_lsn", "durable_lag"],
  witness: [],
};
const LABELS = {
  timeline: "Timeline", flush_lsn: "Written to", released_lsn: "Confirmed to",
  durable_lsn: "Durable to", replay_lsn: "Replayed to",
  durable_lag: "Not durable", replay_lag: "Not replayed",
};

function positions(node, at) {
  // Of a role that is not known everything might be expected.
  const expected = Object.hasOwn(POSITIONS, node.role) ? POSITIONS[node.role] : Object.keys(LABELS);
  return Object.entries(LABELS).flatMap(([field, label]) => {
    if (field.endsWith("_lag")) {
      const [bytes, seconds] = [`${field}_bytes`, `${field}_seconds`];
      if (!expected.includes(field) && node[bytes] === undefined && node[seconds] === undefined) return [];
      return [fact(label, ...both(node[seconds], node[bytes], at(seconds), at(bytes)))];
    }
    if (!expected.includes(field) && node[field] === undefined) return [];
    const value = field === "timeline" ? told(at(field), amount(node[field]), String) : text(at(field), node[field]);
    return [fact(label, value)];
  });
}

function addresses(node, at) {
  const keeper = node.kind === "witness" || node.kind === "journal";
  return [
    ...(keeper ? [] : [fact("For applications", text(at("postgres_address"), node.postgres_address))]),
    fact("Between nodes", text(at("grpc_address"), node.grpc_address)),
    fact("HTTP", text(at("http_address"), node.http_address)),
  ];
}

function progress(node, at) {
  if (node.progress === undefined) return null;
  const { what, done_bytes, total_bytes, bytes_per_second } = fields(node.progress);
  const [done, total] = [amount(done_bytes), amount(total_bytes)];
  return {
    what: text(at("progress.what"), what),
    parts: [
      told(at("progress.done_bytes"), done, size), " of ", told(at("progress.total_bytes"), total, size), ", ",
      told(at("progress.bytes_per_second"), amount(bytes_per_second), (rate) => `${size(rate)} a second`),
    ],
    meter: done === null || total === null || total === 0
      ? null
      : { share: Math.min(done / total, 1), label: "Done so far" },
  };
}

function notes(status, node, at) {
  const note = (state, label, ...parts) => ({ state, label, parts });
  const found = [];
  if (words(node.mark) !== null) found.push(note("attention", "Must not be promoted", text(at("mark"), node.mark)));
  if (words(node.trouble) !== null) found.push(note("attention", "Trouble", text(at("trouble"), node.trouble)));
  list(node.warnings).forEach((warning, index) =>
    found.push(note("attention", "Warning", text(at(`warnings[${index}]`), warning))));
  if (node.newest_receipt !== undefined) {
    found.push(note("told", "Newest loss receipt", ...receipt(status, fields(node.newest_receipt), at)));
  }
  return found;
}

function receipt(status, it, at) {
  const field = (name) => at(`newest_receipt.${name}`);
  const head = [text(field("id"), it.id), ", made ", ...when(field("made_unix_us"), it.made_unix_us, status), ": "];
  const lost = [
    told(field("commits"), amount(it.commits), String), " commits and ",
    told(field("lost_wal_bytes"), amount(it.lost_wal_bytes), size), " of WAL, over ",
    told(field("lost_seconds"), amount(it.lost_seconds), span), ", of epoch ",
    told([field("lost_epoch.incarnation"), field("lost_epoch.number")], epoch(it.lost_epoch), (e) => e),
    " at ", text(field("node"), it.node), "; from ", text(field("fork_lsn"), it.fork_lsn), " to ", text(field("end_lsn"), it.end_lsn),
    ", which ends ", text(field("tail"), it.tail),
  ];
  return [...head, ...lost];
}

// --- Plots ---------------------------------------------------------------------------------------

/**
 * What is drawn. A line's `key` names what is remembered from answer to answer; `hue` and `dashed`
 * tell lines apart, the hue by node and the dash by what is measured.
 */
function plots(status, nodes) {
  const lag = (field, unit, say) =>
    nodes.flatMap((node, index) => {
      const name = words(node.name);
      if (name === null || (node.role !== "passive" && node.role !== "journal")) return [];
      const line = (what, kind, dashed) => {
        const from = `nodes[${index}].${what}_lag_${unit}`;
        const value = amount(node[`${what}_lag_${unit}`]);
        return { key: `${name}/${what}_lag_${unit}`, label: `${name}, ${kind}`, value, now: told(from, value, say), hue: index, dashed };
      };
      const durable = line("durable", "not durable", false);
      return node.role === "journal" ? [durable] : [durable, line("replay", "not replayed", true)];
    });
  const single = (key, label, from, value, say) => [{ key, label, value, now: told(from, value, say), hue: 0, dashed: false }];
  const holder = nodes.findIndex((node) => words(status.active) !== null && node.name === status.active);
  const lease = holder < 0 ? null : amount(nodes[holder].lease_left_seconds);
  const exposure = single("exposure", "exposure", "exposure_seconds", amount(status.exposure_seconds), span);
  const ceiling = amount(status.rpo_ceiling_seconds);
  return [
    { id: "lag-seconds", title: "Lag in time", unit: "seconds", lines: lag("lag", "seconds", span) },
    { id: "lag-bytes", title: "Lag in bytes of WAL", unit: "bytes", lines: lag("lag", "bytes", size) },
    { id: "exposure", title: "Exposure", unit: "seconds", lines: exposure, limit: ceiling === null ? null : { value: ceiling, label: "ceiling" } },
    {
      id: "lease", title: "Lease left", unit: "seconds",
      lines: single("lease", "lease left", holder < 0 ? [] : `nodes[${holder}].lease_left_seconds`, lease, span),
    },
  ];
}

/** The epoch, which a plot marks where it changes. */
export const epochOf = (answer) => epoch(fields(answer).epoch);

// --- Lately --------------------------------------------------------------------------------------

/** Newest first; what has no moment comes last, in the order it was recorded. */
function events(status) {
  const promotions = list(status.lineage).map((link, index, all) => promotion(status, fields(link), index, all));
  const orders = list(status.operations).map((order, index) => operation(status, fields(order), index));
  const all = [...promotions, ...orders].reverse();
  return all.sort((a, b) => (b.at ?? -1) - (a.at ?? -1));
}

function promotion(status, link, index) {
  const field = (name) => `lineage[${index}].${name}`;
  const lost = amount(link.lost_seconds_max);
  const bytes = amount(link.lost_wal_bytes_min);
  const lossless = lost === 0 && bytes === 0;
  const first = index === 0 && link.fork_lsn === undefined;
  return {
    at: amount(link.at_unix_us),
    when: when(field("at_unix_us"), link.at_unix_us, status),
    state: lossless ? "good" : lost === null || bytes === null ? "unknown" : "attention",
    word: lossless ? "nothing lost" : lost === null || bytes === null ? "loss unknown" : "with loss",
    title: [
      "Epoch ", told([field("epoch.incarnation"), field("epoch.number")], epoch(link.epoch), (it) => it),
      " began: ", text(field("node"), link.node), " was promoted",
    ],
    lines: [
      [
        "Lost at most ", told(field("lost_seconds_max"), lost, span), " of acknowledged commits, and at least ",
        told(field("lost_wal_bytes_min"), bytes, size), " of WAL.",
      ],
      [
        "Timeline ", told(field("timeline"), amount(link.timeline), String),
        ...(first ? [", the first."] : [", from ", text(field("fork_lsn"), link.fork_lsn), "."]),
      ],
    ],
  };
}

const OUTCOMES = { scheduled: "told", running: "attention", done: "good", cancelled: "told", refused: "bad", failed: "bad" };

function operation(status, order, index) {
  const field = (name) => `operations[${index}].${name}`;
  const started = amount(order.started_unix_us);
  const lines = [["Ordered by ", text(field("caller"), order.caller), ": “", text(field("reason"), order.reason), "”"]];
  if (words(order.detail) !== null) lines.push([text(field("detail"), order.detail)]);
  if (!["running", "scheduled"].includes(order.outcome) || order.ended_unix_us !== undefined) {
    lines.push(["Ended ", ...when(field("ended_unix_us"), order.ended_unix_us, status)]);
  }
  return {
    at: started,
    when: when(field("started_unix_us"), order.started_unix_us, status),
    state: Object.hasOwn(OUTCOMES, order.outcome) ? OUTCOMES[order.outcome] : "unknown",
    word: words(order.outcome) ?? "unknown",
    title: [
      "Operation ", told(field("id"), amount(order.id), String), ": ", text(field("kind"), order.kind),
      ...(words(order.what) === null ? [] : [" ", text(field("what"), order.what)]),
    ],
    lines,
  };
}

// --- Settings ------------------------------------------------------------------------------------

function settings(status) {
  const dial = fields(status.dial);
  return [
    {
      title: "Dial",
      facts: [
        fact("In force", text("durability", status.durability)),
        fact("Wanted", text("dial.mode", dial.mode)),
        fact("Ceiling wanted", told("dial.ceiling_seconds", amount(dial.ceiling_seconds), span)),
        fact("If the passive is lost", text("dial.on_passive_loss", dial.on_passive_loss)),
        fact("Lifted", yesNo("durability_lifted", status.durability_lifted, "yes: nobody is waited for", "no")),
        fact("Waited for", names("waited_for", status.waited_for)),
        fact("Copies needed", told("durable_copies", amount(status.durable_copies), String)),
        fact("Promotes on a seal", yesNo("dial.promote_without_lease_wait", dial.promote_without_lease_wait)),
        fact("Of configuration", told("dial.config_version", amount(dial.config_version), String)),
        fact("Generation", told("generation", amount(status.generation), String)),
      ],
    },
    {
      title: "Consensus and identity",
      facts: [
        fact("Answered by", text("answered_by", status.answered_by)),
        fact("Majority", yesNo("majority", status.majority, "heard", "not heard")),
        fact("Leader", text("leader", status.leader)),
        fact("Epoch", told(["epoch.incarnation", "epoch.number"], epoch(status.epoch), (it) => it)),
        fact("State's log index", told("applied_index", amount(status.applied_index), String)),
        fact("Cluster", text("cluster", status.cluster)),
        fact("System identifier", text("system_id", status.system_id)),
        fact("Form of the status", told("version", amount(status.version), String)),
      ],
    },
  ];
}
