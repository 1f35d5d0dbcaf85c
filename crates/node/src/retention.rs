//! Keeps WAL within its limits at this node: removes what nobody needs from the journal, gives up a slot
//! before PostgreSQL's own disk is full, and says in metrics and words how much room is left.
//!
//! What is given up in which order is `understudy_core::retention`'s to say; the journal itself refuses
//! what goes over a limit, whether anybody looks or not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use tokio::sync::watch;
use understudy_core::ClusterState;
use understudy_core::retention::{self, Growth, Held, Need, Policy, SlotHeld};
use understudy_postgres::WalKept;
use understudy_shipping::journal::inspect::Gap;
use understudy_shipping::journal::{Journal, Room};
use understudy_types::{Clock, Lsn, NodeId};

use crate::config::{NodeConfig, PostgresConfig, WalConfig};
use crate::hands::{Hands, chain};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// A limit that is nearer than this at the present rate is worth a warning.
const NEAR: Duration = Duration::from_secs(3600);
/// On a small file system the reserve is what bounds, not a share of it.
const BYTES_MAX_LEAST: u64 = 1 << 30;
/// How many times PostgreSQL's `max_wal_size` goes into what may be held.
const CHECKPOINTS_FIT: u64 = 4;
/// PostgreSQL's own default, and twice the largest segment that is common, which it wants at least.
const MAX_WAL_SIZE: u64 = 1 << 30;
const MAX_WAL_SIZE_MIN: u64 = 128 << 20;
/// How long the checkpoint may take that lets PostgreSQL remove WAL.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(60);

/// The limits of the journal, and of PostgreSQL's own WAL, each for its file system.
///
/// # Errors
/// When a file system cannot be asked.
pub(crate) fn policies(
    config: &NodeConfig,
    postgres: &PostgresConfig,
) -> io::Result<(Policy, Policy)> {
    let pg_wal = policy(&config.wal, &postgres.data_directory.join("pg_wal"))?;
    Ok((journal_policy(config)?, pg_wal))
}

/// The limits of the journal.
///
/// # Errors
/// When its file system cannot be asked.
pub(crate) fn journal_policy(config: &NodeConfig) -> io::Result<Policy> {
    policy(&config.wal, &config.data_dir.join("wal"))
}

/// PostgreSQL's settings with the limits of what it keeps, where the operator does not say them in
/// PostgreSQL's own words.
pub(crate) fn with_limits(
    mut parameters: BTreeMap<String, String>,
    policy: &Policy,
) -> BTreeMap<String, String> {
    // Nothing can be removed between two checkpoints, neither here nor at a node that follows: several of
    // them have to fit.
    let checkpoints = (policy.bytes_max / CHECKPOINTS_FIT).clamp(MAX_WAL_SIZE_MIN, MAX_WAL_SIZE);
    let limits = [
        ("wal_keep_size", policy.keep_bytes),
        ("max_slot_wal_keep_size", policy.bytes_max),
        ("max_wal_size", checkpoints),
    ];
    for (name, bytes) in limits {
        if !parameters.keys().any(|key| key.eq_ignore_ascii_case(name)) {
            parameters.insert(name.to_owned(), format!("{}MB", bytes >> 20));
        }
    }
    parameters
}

/// The limits of the file system that `place` lies on, or is to lie on.
fn policy(config: &WalConfig, place: &Path) -> io::Result<Policy> {
    let exists = place.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let room = Room::of(exists)?;
    let bytes_max = config.bytes_max.unwrap_or((room.total_bytes / 4).max(BYTES_MAX_LEAST));
    Ok(Policy {
        keep_bytes: config.keep_bytes.min(bytes_max),
        bytes_max,
        reserve_bytes: config.reserve_bytes.unwrap_or((room.total_bytes / 20).min(4 << 30)),
    })
}

/// One of the two places that WAL lies in.
struct Place {
    word: &'static str,
    policy: Policy,
    growth: Growth,
}

impl Place {
    fn new(word: &'static str, policy: Policy) -> Place {
        Place { word, policy, growth: Growth::default() }
    }

    /// Sets the gauges; `None` where nothing is held. `held_for`: somebody keeps it from being removed.
    fn record(&self, held: Option<&Held>, held_for: Option<&str>) -> Option<Duration> {
        let room = held.map(|held| retention::room(&self.policy, held));
        let full_in = room.filter(|_| held_for.is_some()).and_then(|r| self.growth.full_in(r));
        let set = |name: &'static str, value: Option<f64>| {
            gauge!(name, "place" => self.word).set(value.unwrap_or(f64::NAN));
        };
        let held_bytes = held.map(|held| held.end_lsn.bytes_since(held.begin_lsn) as f64);
        set("understudy_wal_held_bytes", held_bytes);
        set("understudy_wal_free_bytes", held.map(|held| held.free_bytes as f64));
        set("understudy_wal_room_bytes", room.map(|room| room as f64));
        set("understudy_wal_bytes_per_second", held.and(self.growth.bytes_per_second()));
        let never = held.map(|_| f64::INFINITY);
        set("understudy_wal_full_in_seconds", full_in.map(|time| time.as_secs_f64()).or(never));
        full_in
    }
}

/// Runs until the daemon ends; `words` is replaced when there is something else to say.
pub(crate) async fn look_after(
    hands: Hands,
    clock: Arc<dyn Clock>,
    journal: Policy,
    server: Policy,
    words: watch::Sender<Vec<String>>,
) {
    let mut journal = JournalKeeper::new(hands.journal().clone(), journal);
    let mut server = ServerKeeper {
        hands: hands.clone(),
        server: Place::new("pg_wal", server),
        away: BTreeSet::new(),
        told: BTreeSet::new(),
    };
    // A counter that is not there until the first time hides that first time from a rate.
    counter!("understudy_wal_removed_bytes_total").absolute(0);
    counter!("understudy_wal_slots_given_up_total").absolute(0);
    let mut every = regularly();
    loop {
        every.tick().await;
        // As long as it is not known what the data directory needs, everything stays.
        let needs = hands.wal_needs().await.ok_or("a data directory in the making");
        let looked = journal.look(&*clock, needs.as_deref(), OnHeld::Refuse).await;
        if looked.refused_for_somebody {
            // What was replayed since the last restart point is not needed after another one.
            if let Err(error) = hands.server().checkpoint(CHECKPOINT_PATIENCE).await {
                tracing::debug!(error = chain(&error), "no restart point to make room");
            }
        }
        let mut said = looked.words;
        said.extend(server.look(&*clock).await);
        tell(&words, said);
    }
}

/// The same for a journal that has no PostgreSQL beside it. Other nodes need it, and it is a spare of what
/// they have: what they lack is given up before new WAL is refused.
pub(crate) async fn look_after_journal(
    journal: Journal,
    state: watch::Receiver<Arc<ClusterState>>,
    clock: Arc<dyn Clock>,
    policy: Policy,
    words: watch::Sender<Vec<String>>,
) {
    let mut journal = JournalKeeper::new(journal, policy);
    counter!("understudy_wal_removed_bytes_total").absolute(0);
    let mut every = regularly();
    let mut before = BTreeMap::new();
    loop {
        every.tick().await;
        let positions = eligible_positions(&state.borrow());
        // One that comes nearer would be waited for by every commit if it were cut off from here.
        let comes_nearer = positions.as_ref().is_some_and(|positions| {
            positions.iter().any(|(node, lsn)| before.get(node).is_some_and(|known| lsn > known))
        });
        let on_held = if comes_nearer { OnHeld::Refuse } else { OnHeld::GiveUp };
        let needs =
            positions.as_ref().map(|positions| needs_of(journal.segment_bytes(), positions));
        let needs = needs.ok_or("a promotion that may ask for it");
        let looked = journal.look(&*clock, needs.as_deref(), on_held).await;
        before = positions.unwrap_or_default();
        tell(&words, looked.words);
    }
}

/// How far the nodes that may be promoted had got, by what was published last; `None` while that is not
/// known, as during a promotion, which may ask for any of it.
fn eligible_positions(state: &ClusterState) -> Option<BTreeMap<NodeId, Lsn>> {
    state.active()?;
    let eligible = state.durability.eligible.iter();
    Some(eligible.map(|node| (*node, state.known_durable(*node))).collect())
}

/// What they lack, and the segment before it: their last record may begin there.
fn needs_of(segment_bytes: u64, positions: &BTreeMap<NodeId, Lsn>) -> Vec<Need> {
    let before = |lsn: &Lsn| Lsn(lsn.0.saturating_sub(segment_bytes));
    let needs = positions.values().map(before);
    needs.map(|from_lsn| Need { who: "a passive that lacks it", from_lsn }).collect()
}

fn regularly() -> tokio::time::Interval {
    let mut every = tokio::time::interval(INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every
}

fn tell(words: &watch::Sender<Vec<String>>, said: Vec<String>) {
    words.send_if_modified(|before| {
        let changed = *before != said;
        if changed {
            said.iter().for_each(|words| tracing::warn!(words, "room for WAL"));
            *before = said;
        }
        changed
    });
}

/// What becomes of WAL that somebody needs, when it takes more than half of what there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnHeld {
    /// It stays, and new WAL is refused in the end.
    Refuse,
    /// It goes.
    GiveUp,
}

/// What came of a look at the journal.
struct Looked {
    words: Vec<String>,
    /// It refuses new WAL, for the sake of somebody who needs what it has.
    refused_for_somebody: bool,
}

/// Keeps a journal within its limits.
struct JournalKeeper {
    journal: Journal,
    place: Place,
    /// What was missing in it at the last look.
    gaps: Vec<Gap>,
}

impl JournalKeeper {
    fn new(journal: Journal, policy: Policy) -> JournalKeeper {
        JournalKeeper { journal, place: Place::new("journal", policy), gaps: Vec::new() }
    }

    fn segment_bytes(&self) -> u64 {
        self.journal.identity().map_or(0, |(_, size)| size.bytes())
    }

    /// `needs`: by whom WAL is needed, or for whose sake everything stays, because that is not known.
    async fn look(
        &mut self,
        clock: &dyn Clock,
        needs: Result<&[Need], &&'static str>,
        on_held: OnHeld,
    ) -> Looked {
        let journal = self.journal.clone();
        let positions = journal.positions().borrow().clone();
        let free = Room::of(journal.dir()).map(|room| room.free_bytes);
        let (Some(positions), Ok(free_bytes)) = (positions, free) else {
            self.place.record(None, None);
            gauge!("understudy_wal_refused").set(f64::NAN);
            return Looked { words: Vec::new(), refused_for_somebody: false };
        };
        let (begin_lsn, end_lsn) = (positions.begin_lsn, positions.written_lsn);
        let held = Held { begin_lsn, end_lsn, free_bytes };
        self.place.growth.note(clock.now(), end_lsn);
        let mut plan = retention::plan(&self.place.policy, &held, needs.unwrap_or(&[]));
        let given_up = plan.held_for.filter(|_| on_held == OnHeld::GiveUp);
        if given_up.is_some() {
            plan = retention::plan(&self.place.policy, &held, &[]);
        }
        let held_for = plan.held_for.or(needs.err().copied());
        if needs.is_ok() && plan.remove_before > begin_lsn {
            let removing =
                tokio::task::spawn_blocking(move || journal.remove_before(plan.remove_before));
            match removing.await {
                Ok(Ok(bytes)) => counter!("understudy_wal_removed_bytes_total").increment(bytes),
                Ok(Err(error)) => tracing::warn!(error = chain(&error), "WAL was not removed"),
                Err(error) => tracing::error!(%error, "WAL was not removed"),
            }
        }
        let missing = self.missing().await;
        let full_in = self.place.record(Some(&held), held_for);
        let refused = positions.error.filter(|error| error.is_no_room()).map(|e| e.to_string());
        gauge!("understudy_wal_refused").set(f64::from(u8::from(refused.is_some())));
        let policy = &self.place.policy;
        let mut words = words_of_journal(policy, &held, held_for, refused.as_deref(), full_in);
        words.extend(given_up.map(|who| {
            format!(
                "WAL is given up that {who}, because it takes more than half of the room: after a loss of \
                 the active it could not be fetched from here"
            )
        }));
        words.extend(words_of_gaps(&missing));
        Looked { words, refused_for_somebody: refused.is_some() && held_for.is_some() }
    }

    /// WAL that is missing in the middle of the journal, by the names of its files at two looks: a file
    /// that is being renamed may be seen by neither name.
    async fn missing(&mut self) -> Vec<Gap> {
        let place = self.journal.place();
        let looked = tokio::task::spawn_blocking(move || match place {
            Some(place) => place.survey().map(|survey| survey.coverage(&place).gaps),
            None => Ok(Vec::new()),
        });
        let gaps = match looked.await {
            Ok(Ok(gaps)) => gaps,
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "cannot look at the journal's files");
                return Vec::new();
            }
            Err(error) => {
                tracing::error!(%error, "cannot look at the journal's files");
                return Vec::new();
            }
        };
        let before = std::mem::replace(&mut self.gaps, gaps.clone());
        let same = |gap: &Gap| before.iter().any(|known| known.first_file == gap.first_file);
        gaps.into_iter().filter(same).collect()
    }
}

/// Keeps what PostgreSQL holds for others within its limits.
struct ServerKeeper {
    hands: Hands,
    server: Place,
    /// Slots that nobody streamed from at the last look.
    away: BTreeSet<String>,
    /// Slots that a metric speaks of.
    told: BTreeSet<String>,
}

impl ServerKeeper {
    async fn look(&mut self, clock: &dyn Clock) -> Vec<String> {
        let holds = self.hands.source().borrow().is_some();
        let wal_dir = self.hands.server().settings().data_dir.join("pg_wal");
        let free = Room::of(&wal_dir).map(|room| room.free_bytes);
        let kept = if holds { self.hands.server().wal_kept().await.ok() } else { None };
        let (Some(kept), Ok(free_bytes)) = (kept, free) else {
            self.away.clear();
            self.server.record(None, None);
            self.record_slots(&[]);
            return Vec::new();
        };
        self.server.growth.note(clock.now(), kept.flush_lsn);
        let oldest = kept.slots.iter().filter_map(|slot| Some((slot.restart_lsn?, &slot.name)));
        let oldest = oldest.min();
        let begin_lsn = oldest.map_or(kept.flush_lsn, |(lsn, _)| lsn.min(kept.flush_lsn));
        let held = Held { begin_lsn, end_lsn: kept.flush_lsn, free_bytes };
        let slot = oldest
            .filter(|(lsn, _)| kept.flush_lsn.bytes_since(*lsn) > self.server.policy.keep_bytes);
        let archive = kept.archive_failing.as_ref().map(|_| "an archive that fails");
        let full_in =
            self.server.record(Some(&held), archive.or(slot.map(|(_, name)| name.as_str())));
        let mut said = words_of_server(&self.server.policy, &kept, free_bytes, full_in);
        said.extend(self.give_up_a_slot(&kept, free_bytes).await);
        said
    }

    /// A slot that is gone keeps nothing that is known.
    fn record_slots(&mut self, slots: &[SlotHeld]) {
        let set = |name: &str, bytes: f64| {
            gauge!("understudy_wal_slot_retained_bytes", "slot" => name.to_owned()).set(bytes);
        };
        std::mem::take(&mut self.told).iter().for_each(|name| set(name, f64::NAN));
        for slot in slots {
            set(&slot.name, slot.retained_bytes as f64);
            self.told.insert(slot.name.clone());
        }
    }

    /// Drops the slot of a node that is away, if the reserve is touched.
    async fn give_up_a_slot(&mut self, kept: &WalKept, free_bytes: u64) -> Option<String> {
        let prefix = crate::hands::SLOT_PREFIX;
        // A node that is fed from the journal, or is being copied, has a slot that nobody streams from.
        let attached = self.hands.attached_slots();
        let ours = kept.slots.iter().filter(|slot| slot.name.starts_with(prefix));
        let slots: Vec<SlotHeld> = ours
            .map(|slot| SlotHeld {
                name: slot.name.clone(),
                active: slot.active
                    || kept.copying
                    || attached.contains(&slot.name)
                    || !self.away.contains(&slot.name),
                retained_bytes: slot.restart_lsn.map_or(0, |lsn| kept.flush_lsn.bytes_since(lsn)),
            })
            .collect();
        self.record_slots(&slots);
        // A node that only dials again is not away: it takes two looks.
        let inactive = kept.slots.iter().filter(|slot| !slot.active);
        self.away = inactive.map(|slot| slot.name.clone()).collect();
        let given_up = retention::slot_to_drop(&self.server.policy, free_bytes, &slots)?;
        let (name, retained) = (&given_up.name, given_up.retained_bytes);
        match self.hands.server().drop_slot(name).await {
            Ok(_) => {
                counter!("understudy_wal_slots_given_up_total").increment(1);
                tracing::warn!(slot = name, retained, free_bytes, "slot given up for room");
                if let Err(error) = self.hands.server().checkpoint(CHECKPOINT_PATIENCE).await {
                    tracing::warn!(error = chain(&error), "checkpoint for room failed");
                }
                Some(format!(
                    "the slot {name} was given up, because only {} are free on PostgreSQL's disk: its \
                     node is copied afresh when it is back, and a failover to it before that could not \
                     list what is lost",
                    size(free_bytes)
                ))
            }
            Err(error) => Some(format!("the slot {name} cannot be given up: {}", chain(&error))),
        }
    }
}

fn words_of_journal(
    policy: &Policy,
    held: &Held,
    held_for: Option<&str>,
    refused: Option<&str>,
    full_in: Option<Duration>,
) -> Vec<String> {
    let bytes = held.end_lsn.bytes_since(held.begin_lsn);
    let why = held_for.map_or(String::new(), |who| format!(", held for {who}"));
    let what = format!("the journal holds {}{why}", size(bytes));
    let limits = format!(
        "wal.max is {}, {} are free and wal.reserve keeps {} of them",
        size(policy.bytes_max),
        size(held.free_bytes),
        size(policy.reserve_bytes)
    );
    if let Some(why) = refused {
        vec![format!("{what}, and refuses new WAL: {why}")]
    } else if let Some(time) = full_in.filter(|time| *time < NEAR) {
        vec![format!(
            "{what}; at this rate there is room for {} min: {limits}",
            time.as_secs() / 60
        )]
    } else {
        Vec::new()
    }
}

fn words_of_gaps(gaps: &[Gap]) -> Vec<String> {
    let words = |gap: &Gap| {
        format!(
            "WAL is missing in the journal: {} from {} to {}, from file {} on; `understudy wal verify` \
             says what to do",
            size(gap.to_lsn.bytes_since(gap.from_lsn)),
            gap.from_lsn,
            gap.to_lsn,
            gap.first_file
        )
    };
    gaps.iter().map(words).collect()
}

fn words_of_server(
    policy: &Policy,
    kept: &WalKept,
    free_bytes: u64,
    full_in: Option<Duration>,
) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(wal) = &kept.archive_failing {
        said.push(format!(
            "archive_command fails at {wal}: PostgreSQL keeps all WAL since then, and {} are free on \
             its disk; mend the archive",
            size(free_bytes)
        ));
    }
    let lost = kept.slots.iter().filter(|slot| slot.wal_status == "lost");
    said.extend(lost.map(|slot| {
        format!(
            "the slot {} kept more than max_slot_wal_keep_size and has lost its WAL: its node is copied \
             afresh when it is back",
            slot.name
        )
    }));
    if free_bytes < policy.reserve_bytes {
        said.push(format!(
            "only {} are free on PostgreSQL's disk, where wal.reserve wants {}: make room",
            size(free_bytes),
            size(policy.reserve_bytes)
        ));
    } else if let Some(time) = full_in.filter(|time| *time < NEAR) {
        let behind = kept.slots.iter().filter(|slot| slot.restart_lsn.is_some());
        let behind = behind.min_by_key(|slot| slot.restart_lsn);
        said.push(format!(
            "at this rate there is room for {} min of WAL at PostgreSQL; what keeps most is {}",
            time.as_secs() / 60,
            behind.map_or("the archive", |slot| slot.name.as_str())
        ));
    }
    said
}

/// For people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// Help for the metrics of this module.
pub(crate) fn describe() {
    describe_counter!(
        "understudy_wal_removed_bytes_total",
        Unit::Bytes,
        "WAL that was removed from the journal because nobody needed it."
    );
    describe_counter!(
        "understudy_wal_slots_given_up_total",
        "Retention slots dropped because PostgreSQL's disk ran out of room; each costs a fresh copy."
    );
    for (name, unit, help) in GAUGES {
        describe_gauge!(*name, *unit, *help);
    }
}

const GAUGES: &[(&str, Unit, &str)] = &[
    (
        "understudy_wal_held_bytes",
        Unit::Bytes,
        "WAL in the journal; at the active also what slots keep in pg_wal. NaN if none.",
    ),
    ("understudy_wal_refused", Unit::Count, "1 while the journal takes no more WAL."),
    ("understudy_wal_free_bytes", Unit::Bytes, "Free on that place's file system."),
    (
        "understudy_wal_room_bytes",
        Unit::Bytes,
        "WAL that may still come before wal.max or wal.reserve is reached, if none is removed.",
    ),
    ("understudy_wal_bytes_per_second", Unit::Bytes, "WAL over the last five minutes."),
    (
        "understudy_wal_full_in_seconds",
        Unit::Seconds,
        "When the room is used up at this rate; +Inf while WAL is removed as fast as it comes.",
    ),
    ("understudy_wal_slot_retained_bytes", Unit::Bytes, "WAL that a slot keeps at the active."),
];

#[cfg(test)]
mod tests {
    use understudy_types::Lsn;

    use super::*;

    const POLICY: Policy =
        Policy { keep_bytes: 1 << 30, bytes_max: 10 << 30, reserve_bytes: 1 << 30 };

    fn held(bytes: u64, free_bytes: u64) -> Held {
        Held { begin_lsn: Lsn(0), end_lsn: Lsn(bytes), free_bytes }
    }

    #[test]
    fn a_journal_in_order_is_not_talked_about_and_a_full_one_says_what_to_do() {
        let quiet = words_of_journal(&POLICY, &held(1 << 30, 50 << 30), None, None, None);
        assert_eq!(quiet, Vec::<String>::new());
        let near = Some(Duration::from_secs(1800));
        let near =
            words_of_journal(&POLICY, &held(5 << 30, 50 << 30), Some("its standby"), None, near);
        assert!(near[0].contains("5120 MiB, held for its standby") && near[0].contains("30 min"));
        let full = words_of_journal(
            &POLICY,
            &held(5 << 30, 1 << 30),
            Some("its standby"),
            Some("no room; make some"),
            None,
        );
        assert!(full[0].contains("refuses new WAL: no room"), "{full:?}");
    }

    #[test]
    fn a_gap_in_the_journal_is_told_with_its_place_and_its_file() {
        let gap = Gap {
            timeline: understudy_types::Timeline::FIRST,
            from_lsn: Lsn(0x300_0000),
            to_lsn: Lsn(0x500_0000),
            first_file: "000000010000000000000003".to_owned(),
        };
        let said = words_of_gaps(&[gap]);
        for words in ["32 MiB from 0/3000000 to 0/5000000", "file 000000010000000000000003"] {
            assert!(said[0].contains(words), "{said:?}");
        }
    }

    #[test]
    fn the_active_tells_of_a_failing_archive_a_lost_slot_and_a_full_disk() {
        let slot = |name: &str, wal_status: &str| understudy_postgres::Slot {
            name: name.to_owned(),
            active: false,
            restart_lsn: Some(Lsn(1)),
            wal_status: wal_status.to_owned(),
        };
        let mut kept = WalKept {
            flush_lsn: Lsn(5 << 30),
            slots: vec![slot("understudy_south", "extended")],
            archive_failing: None,
            copying: false,
        };
        assert!(words_of_server(&POLICY, &kept, 50 << 30, None).is_empty());
        let near = words_of_server(&POLICY, &kept, 50 << 30, Some(Duration::from_secs(120)));
        assert!(near[0].contains("2 min") && near[0].contains("understudy_south"), "{near:?}");
        kept.slots.push(slot("understudy_east", "lost"));
        kept.archive_failing = Some("00000001000000000000000A".to_owned());
        let said = words_of_server(&POLICY, &kept, 1 << 20, None);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("00000A") && said[1].contains("understudy_east"), "{said:?}");
        assert!(said[2].contains("only 1 MiB are free"), "{said:?}");
    }

    #[test]
    fn every_metric_of_a_look_has_help_and_unknown_is_nan() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let text = metrics::with_local_recorder(&recorder, || {
            describe();
            Place::new("journal", POLICY).record(Some(&held(1 << 20, 3 << 30)), None);
            Place::new("pg_wal", POLICY).record(None, None);
            recorder.handle().render()
        });
        for line in [
            "understudy_wal_held_bytes{place=\"journal\"} 1048576",
            "understudy_wal_room_bytes{place=\"journal\"} 2147483648",
            "understudy_wal_full_in_seconds{place=\"journal\"} inf",
            "understudy_wal_full_in_seconds{place=\"pg_wal\"} NaN",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        }
    }
}
