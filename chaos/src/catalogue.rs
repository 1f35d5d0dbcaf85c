//! Every fault that is to be survived, F-1 to F-108: what is expected, and whether the rig plays it.
//!
//! One table. A row without a scenario says what it waits for; nothing here claims a row that is not
//! played.

use std::time::Duration;

use anyhow::Result;

use crate::scenarios::{
    clocks, disks, histories, links, ports, postgres, power, processes, rejoin, rot, sites,
};
use crate::stage::Stage;

/// What is done on the stage, and what is expected of it besides what every row is judged by.
pub(crate) type Play = fn(&mut Stage) -> Result<()>;

/// Whether a row is played.
#[derive(Clone, Copy)]
pub(crate) enum Status {
    /// By this scenario.
    Built(Play),
    /// Modelled in the simulator; the catalogue asks for nothing real.
    Simulated,
    /// Not yet, and what it waits for.
    NotYet(&'static str),
}

/// One fault.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) status: Status,
    /// How long its clients wait for an answer, where the row makes their line slower than they bear
    /// otherwise.
    pub(crate) patience: Option<Duration>,
}

impl Row {
    pub(crate) const fn new(
        id: &'static str,
        title: &'static str,
        expected: &'static str,
        status: Status,
    ) -> Row {
        Row { id, title, expected, status, patience: None }
    }

    const fn with_patience(self, patience: Duration) -> Row {
        Row { patience: Some(patience), ..self }
    }

    /// Its scenario, if there is one.
    pub(crate) fn play(&self) -> Option<Play> {
        match self.status {
            Status::Built(play) => Some(play),
            Status::Simulated | Status::NotYet(_) => None,
        }
    }

    /// In words.
    pub(crate) fn status_words(&self) -> String {
        match self.status {
            Status::Built(_) => "built".to_owned(),
            Status::Simulated => "simulator".to_owned(),
            Status::NotYet(why) => format!("not yet: {why}"),
        }
    }
}

use Status::{Built, NotYet, Simulated};

const ARCHIVE: &str = "archive, backup and restore";
const DRILL: &str = "drills";
const MEMBERS: &str = "membership changes";
const SECURITY: &str = "hostile peers and certificates";
const STORAGE: &str = "disk faults";

/// The table.
pub(crate) const ROWS: &[Row] = &[
    // Processes.
    Row::new(
        "F-1",
        "kill -9 the active's daemon",
        "commits wait for its return or a failover; it comes back within the lease or is succeeded",
        Built(processes::active_s_daemon_is_killed),
    ),
    Row::new(
        "F-2",
        "kill -9 the active's postmaster",
        "every process of that server is ended before anybody serves again, here or there",
        Built(processes::active_s_postmaster_is_killed),
    ),
    Row::new(
        "F-3",
        "kill -9 one backend of the active",
        "the server restarts; nothing unreplicated is shown before the passive has it",
        Built(processes::one_backend_is_killed),
    ),
    Row::new(
        "F-4",
        "SIGSTOP the active's daemon for half a lease, one and five, then SIGCONT",
        "commits stop while it stands still; a later epoch makes it fence itself and come back",
        Built(processes::active_s_daemon_stands_still),
    ),
    Row::new(
        "F-5",
        "SIGSTOP the active's postmaster only",
        "new sessions and existing ones disagree: treated as failed after a while",
        Built(processes::active_s_postmaster_stands_still),
    ),
    Row::new(
        "F-6",
        "SIGSTOP one backend that holds locks",
        "no failover; other sessions go on",
        Built(processes::one_backend_stands_still),
    ),
    Row::new(
        "F-7",
        "SIGSTOP the gate's walsender",
        "commits wait until the server has been started again; nothing is lost",
        Built(processes::gate_s_walsender_stands_still),
    ),
    Row::new(
        "F-8",
        "freeze the whole active site for longer than a lease, then thaw it",
        "the passive takes over; the thawed site confirms nothing under its old epoch",
        Built(processes::active_site_stands_still),
    ),
    Row::new("F-9", "a machine is suspended", "the lease is over when it wakes", Simulated),
    Row::new(
        "F-10",
        "the kernel ends the active's daemon for want of memory",
        "as F-1",
        Built(processes::active_s_daemon_runs_out_of_memory),
    ),
    Row::new(
        "F-11",
        "PostgreSQL on the active cannot start any more",
        "bounded restarts, then the lease is given up and the passive takes over",
        Built(sites::active_s_server_cannot_start),
    ),
    Row::new(
        "F-12",
        "PostgreSQL crash-loops on the new active while the diverged old one comes back",
        "the lease does not go back to a diverged site",
        Built(histories::new_active_s_server_crash_loops),
    ),
    Row::new(
        "F-13",
        "the active's daemon crash-loops",
        "PostgreSQL does not run read-write without a lease",
        Built(processes::active_s_daemon_crash_loops),
    ),
    Row::new("F-14", "kill the witness", "commits go on", Built(sites::witness_is_killed)),
    Row::new(
        "F-15",
        "kill the active site and the witness together",
        "the passive has no majority and does not take over until the witness is back",
        Built(sites::active_and_witness_are_killed),
    ),
    Row::new(
        "F-16",
        "all three sites lose their processes at once",
        "they come back; no epoch is used twice; nothing is lost",
        Built(sites::everything_is_killed),
    ),
    Row::new(
        "F-17",
        "the active site gets next to no processor",
        "a correct failover or none; never two",
        Built(processes::active_site_starves),
    ),
    Row::new(
        "F-18",
        "the daemon runs out of file descriptors",
        "it fails closed and says so",
        Built(processes::active_s_daemon_gets_no_descriptors),
    ),
    // Network.
    Row::new(
        "F-19",
        "the active site is isolated; clients beside it go on trying",
        "its acknowledgements stop within a lease; the passive takes over",
        Built(links::active_is_isolated),
    ),
    Row::new(
        "F-20",
        "the passive site is isolated",
        "no failover; in zero commits wait, in bounded they go on",
        Built(links::passive_is_isolated),
    ),
    Row::new(
        "F-21",
        "the link between active and passive is cut; both hear the witness",
        "no failover; in zero commits wait, in bounded they go on",
        Built(links::sites_do_not_hear_each_other),
    ),
    Row::new(
        "F-22",
        "as F-21 while the passive leads the consensus",
        "the lease is renewed by another leader, or the passive takes over once and cleanly",
        Built(links::sites_do_not_hear_each_other_and_the_passive_leads),
    ),
    Row::new(
        "F-23",
        "one way: nothing from the active reaches the passive",
        "no failover; in zero commits wait, in bounded they go on",
        Built(links::passive_does_not_hear_the_active),
    ),
    Row::new(
        "F-24",
        "one way: nothing from the passive reaches the active",
        "no failover; in zero commits wait, in bounded they go on",
        Built(links::active_does_not_hear_the_passive),
    ),
    Row::new(
        "F-25",
        "the link between active and witness is cut",
        "commits go on",
        Built(links::active_and_witness_do_not_hear_each_other),
    ),
    Row::new(
        "F-26",
        "the consensus is blocked, the WAL's connection is open",
        "the lease ends although WAL flows; the passive takes over",
        Built(ports::consensus_is_blocked_and_wal_is_not),
    ),
    Row::new(
        "F-27",
        "the WAL's connection is blocked, the consensus is open",
        "no failover; in zero commits wait, in bounded they go on",
        Built(ports::wal_is_blocked_and_consensus_is_not),
    ),
    Row::new(
        "F-28",
        "clients do not reach the active, the sites hear each other",
        "no failover",
        Built(links::clients_do_not_reach_the_active),
    ),
    Row::new(
        "F-29",
        "the active's link flaps, up and down for 0.1 to 3 s, for half a minute",
        "one failover at most",
        Built(links::active_s_link_flaps),
    ),
    Row::new(
        "F-30",
        "30 of 100 packets between sites are lost",
        "commits go on, slower; no failover",
        Built(links::packets_are_lost),
    ),
    Row::new(
        "F-31",
        "the active's link gets slow: 10, 100 and 250 ms with jitter",
        "no failover",
        Built(links::active_s_link_is_slow),
    )
    // A log-in takes five round trips of up to 600 ms.
    .with_patience(Duration::from_secs(6)),
    Row::new(
        "F-32",
        "frames of the active's link overtake each other, come twice, or have a bit flipped",
        "no failover, no byte is stored twice or wrong",
        Built(links::active_s_link_reorders_and_repeats),
    ),
    Row::new(
        "F-33",
        "the active sends the passive 256 kbit/s at most",
        "heartbeats are not stuck behind WAL: no failover",
        Built(links::active_s_link_is_narrow),
    ),
    Row::new(
        "F-34",
        "large packets between active and passive vanish",
        "the WAL's standstill shows; no failover; in zero commits wait",
        Built(links::large_packets_vanish),
    ),
    Row::new(
        "F-35",
        "every connection between sites is reset, again and again",
        "they reconnect; one failover at most",
        Built(links::connections_are_reset),
    ),
    Row::new(
        "F-36",
        "a node of another cluster answers at the passive's address",
        "it is refused: nobody takes over, nothing is attached",
        Built(histories::another_cluster_answers),
    ),
    Row::new(
        "F-37",
        "links are cut one by one and healed in another order",
        "the cluster finds together again",
        Built(links::links_are_cut_one_by_one),
    ),
    Row::new(
        "F-38",
        "a majority hangs together only by way of the witness",
        "as F-21",
        Built(links::sites_do_not_hear_each_other),
    ),
    // PostgreSQL's semantics.
    Row::new(
        "F-39",
        "clients set synchronous_commit to local",
        "roles that do are counted; what one session sets is not seen",
        Built(postgres::commits_go_around_the_gate),
    ),
    Row::new(
        "F-40",
        "ALTER SYSTEM takes the gate out of synchronous_standby_names",
        "it has no effect: commits stay gated",
        Built(postgres::gate_s_name_is_edited),
    ),
    Row::new(
        "F-41",
        "a session that waits for its acknowledgement is cancelled",
        "it is told with a warning; its row is there or not, and both are right",
        Built(postgres::wait_is_cancelled),
    ),
    Row::new(
        "F-42",
        "the active's server crashes with WAL that nobody else has, and restarts",
        "it does not show what the passive has not got",
        Built(postgres::crash_with_unreplicated_wal),
    ),
    Row::new(
        "F-43",
        "a session idles in a transaction while a failover is ordered",
        "the order ends all the same, and nothing acknowledged is lost",
        Built(postgres::idle_transaction_at_an_ordered_failover),
    ),
    Row::new(
        "F-44",
        "a long query at the passive holds replay back when the active is lost",
        "the passive takes over after replaying what it has",
        Built(postgres::query_holds_replay_back),
    ),
    Row::new(
        "F-45",
        "a prepared transaction is open when the active is lost",
        "it can be committed at the other site",
        Built(postgres::prepared_transaction_survives),
    ),
    Row::new(
        "F-46",
        "unlogged tables and sequences when the active is lost",
        "the table is empty, the sequence does not go back",
        Built(postgres::unlogged_tables_and_sequences),
    ),
    Row::new(
        "F-47",
        "logical slots at failover",
        "nothing is skipped silently",
        NotYet("logical slots"),
    ),
    Row::new(
        "F-48",
        "a bulk load of some 300 MB",
        "no failover; exposure stays within the dial",
        Built(postgres::bulk_load),
    ),
    Row::new(
        "F-49",
        "the active is lost amid DDL, large transactions and rollbacks",
        "both sites hold the same afterwards",
        Built(postgres::lost_amid_ddl),
    ),
    Row::new(
        "F-50",
        "a page of the active fails its checksum",
        "no failover loop, an alarm",
        NotYet(STORAGE),
    ),
    Row::new("F-51", "wraparound is near", "an alarm only", NotYet("alarms")),
    // Disks.
    Row::new(
        "F-52",
        "the active's disk has no room",
        "its server panics and cannot come back; the other takes over; nothing is lost",
        Built(disks::active_s_disk_is_full),
    ),
    Row::new(
        "F-53",
        "the passive's journal has no room",
        "it confirms nothing that is not durable; in zero commits wait; it goes on once there is room",
        Built(disks::passive_s_journal_is_full),
    ),
    Row::new("F-54", "the archive is full", "slots stay bounded", NotYet(ARCHIVE)),
    Row::new(
        "F-55",
        "the witness's consensus has no room",
        "its daemon ends and says why; commits go on; it comes back once there is room",
        Built(disks::witness_s_consensus_has_no_room),
    ),
    Row::new(
        "F-56",
        "syncs of the active's consensus fail",
        "fatal, never tried again; the other takes over",
        Built(disks::active_s_consensus_cannot_sync),
    ),
    Row::new(
        "F-57",
        "syncs of the passive's journal fail",
        "its daemon ends; nothing is confirmed that is not durable; it comes back from its files",
        Built(disks::passive_s_journal_cannot_sync),
    ),
    Row::new(
        "F-58",
        "syncs of the active's server fail",
        "it panics and is started again, or the other takes over; nothing is lost",
        Built(disks::active_s_server_cannot_sync),
    ),
    Row::new(
        "F-59",
        "syncs of the passive's journal lie, and then its power is lost",
        "what it lacks shows at its start: it is not promoted in zero, and has it again from the active",
        Built(power::passive_s_disk_lies),
    ),
    Row::new(
        "F-60",
        "writes of the witness's consensus are torn by a loss of power",
        "only what it had not acknowledged is cut; it counts again",
        Built(power::consensus_write_is_torn),
    ),
    Row::new(
        "F-61",
        "writes of the passive's journal are torn",
        "it goes on at the last whole record; nothing acknowledged is missing",
        Built(power::journal_write_is_torn),
    ),
    Row::new(
        "F-62",
        "power fails at every sync of the passive's site and of the witness",
        "what was acknowledged is there each time; a passive that is all that is left takes over",
        Built(power::power_fails_at_every_sync),
    ),
    Row::new(
        "F-63",
        "bits flip between the passive and the others, with checksums that fit",
        "TLS refuses them and connections are made anew; no byte is stored wrong; no failover",
        Built(rot::bits_flip_in_flight),
    ),
    Row::new(
        "F-64",
        "bits of the passive's journal flip at rest",
        "they are found and given to nobody; WAL is fetched anew; in zero nobody is promoted without it",
        Built(rot::bit_flips_at_rest),
    ),
    Row::new(
        "F-65",
        "a bit of a backup flips",
        "verification fails loudly",
        NotYet("backups: there are none yet"),
    ),
    Row::new(
        "F-66",
        "the witness's consensus is damaged",
        "it refuses to start and says why; commits go on",
        Built(disks::witness_s_consensus_is_damaged),
    ),
    Row::new(
        "F-67",
        "the witness's vote is zeroed, and is another one",
        "it refuses to start and says why; commits go on",
        Built(rot::witness_s_vote_is_gone),
    ),
    Row::new(
        "F-68",
        "the witness's consensus is gone",
        "the others refuse it under its old number; commits go on",
        Built(disks::witness_s_consensus_is_gone),
    ),
    Row::new(
        "F-69",
        "the witness's consensus is an old copy",
        "the others refuse it; commits go on",
        Built(disks::witness_s_consensus_is_an_old_copy),
    ),
    Row::new(
        "F-70",
        "syncs of both sites' daemons take 200 ms more",
        "commits are slow; nobody takes over",
        Built(disks::disks_are_slow),
    ),
    Row::new(
        "F-71",
        "every write of the active hangs in the kernel",
        "its lease ends and the other takes over; it comes back when its disk does",
        Built(disks::active_s_disk_hangs),
    ),
    Row::new(
        "F-72",
        "the active's disk turns read-only",
        "it fails closed and says why; the other takes over",
        Built(disks::active_s_disk_turns_read_only),
    ),
    Row::new(
        "F-73",
        "the active is lost, and the passive's pg_wal is missing",
        "the passive is not promoted; with the active it is whole again",
        Built(disks::passive_s_wal_directory_is_missing),
    ),
    Row::new(
        "F-74",
        "the active's data directory belongs to somebody else",
        "it cannot serve; the other takes over; no restart storm",
        Built(disks::active_s_data_belongs_to_somebody_else),
    ),
    // Clocks.
    Row::new(
        "F-75",
        "wall clocks jump an hour ahead and an hour back, at each site in turn",
        "no failover, commits go on",
        Built(clocks::wall_clocks_jump),
    ),
    Row::new("F-76", "a monotonic clock drifts", "safe within the bound", Simulated),
    Row::new("F-77", "the boot clock jumps", "as F-9", Simulated),
    Row::new(
        "F-78",
        "the wall clock of the candidate steps during a promotion",
        "no effect",
        Built(clocks::wall_clock_steps_during_a_promotion),
    ),
    Row::new(
        "F-79",
        "a certificate is not valid yet",
        "a clear error, no failover loop",
        NotYet(SECURITY),
    ),
    // Consensus and lease.
    Row::new(
        "F-80",
        "the leader changes between grant and apply",
        "the holder acts on what is applied",
        Simulated,
    ),
    Row::new("F-81", "late and double grants, renewals, releases", "compared by epoch", Simulated),
    Row::new(
        "F-82",
        "a new leader grants before the old lease is waited out",
        "must be caught",
        Simulated,
    ),
    Row::new(
        "F-83",
        "failover there and back again, as fast as roles allow",
        "three epochs, one history",
        Built(sites::there_and_back_again),
    ),
    Row::new(
        "F-84",
        "failover during a change of members",
        "a joint majority decides",
        NotYet(MEMBERS),
    ),
    Row::new("F-85", "a removed node goes on campaigning", "it is ignored", Simulated),
    Row::new(
        "F-86",
        "a snapshot is installed during lease traffic",
        "the state is the log's",
        Simulated,
    ),
    Row::new("F-87", "the witness comes from a backup", "as F-69", NotYet(MEMBERS)),
    Row::new("F-88", "openraft #1802 is put back", "the net catches it", Simulated),
    Row::new("F-89", "rolling upgrade", "unknown is refused, never diverged", NotYet("upgrades")),
    // WAL and timelines.
    Row::new(
        "F-90",
        "two histories with the same timeline number",
        "told apart by the promotion's identity; the site returns by rewind or clone",
        Built(histories::two_histories_have_one_number),
    ),
    Row::new(
        "F-91",
        "the old active has WAL beyond the switch",
        "it is kept before anything is rewound",
        Built(rejoin::divergent_wal_is_kept),
    ),
    Row::new(
        "F-92",
        "pg_rewind is killed",
        "the site is not promotable until it has been rewound or cloned anew",
        Built(rejoin::rewind_is_killed),
    ),
    Row::new(
        "F-93",
        "the WAL that a rewind needs is gone from the old active",
        "it is fetched from the journal, else the site is cloned",
        Built(histories::rewind_needs_wal_that_is_gone),
    ),
    Row::new(
        "F-94",
        "the old active's server is started by hand",
        "it confirms nothing",
        Built(rejoin::old_active_is_started_by_hand),
    ),
    Row::new(
        "F-95",
        "the active is lost while the passive is being cloned",
        "the incomplete copy is never promoted; the clone begins again",
        Built(rejoin::active_is_lost_during_a_clone),
    ),
    Row::new(
        "F-96",
        "the active's or the passive's site is killed at every step of a switchover",
        "one of both is active, never both, never none for ever",
        Built(histories::killed_at_every_step_of_a_switchover),
    ),
    Row::new("F-97", "failover during a drill", "production is not touched", NotYet(DRILL)),
    Row::new(
        "F-98",
        "the active is lost while the passive has a backlog to replay",
        "promotion waits for the replay of all it has",
        Built(rejoin::promoted_with_a_backlog),
    ),
    Row::new("F-99", "two writers archive one segment", "refused with an alarm", NotYet(ARCHIVE)),
    Row::new(
        "F-100",
        "segments of the passive's journal are missing",
        "the gap is told within a minute; what the server needs is fetched anew",
        Built(rot::segment_is_missing),
    ),
    Row::new(
        "F-101",
        "the passive is away while its slot loses its WAL",
        "the active keeps no more than wal.max; the passive is cloned again by itself",
        Built(disks::passive_s_slot_is_lost),
    ),
    // Hostile.
    Row::new("F-102", "wrong and expired certificates", "refused", NotYet(SECURITY)),
    Row::new("F-103", "replayed and forged calls", "refused", NotYet(SECURITY)),
    Row::new("F-104", "malformed messages", "bounded, no panic", NotYet(SECURITY)),
    Row::new("F-105", "slow and idle connections", "timed out", NotYet(SECURITY)),
    Row::new("F-106", "the witness lies", "outside the model; documented", Simulated),
    // Operators.
    Row::new(
        "F-107",
        "wrong orders",
        "refused, naming the evidence",
        NotYet("operator's verbs of later subjects"),
    ),
    Row::new("F-108", "secrets in the open", "refused to start; redacted", NotYet(SECURITY)),
];

/// The row with this identity.
pub(crate) fn find(id: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.id.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_has_every_fault_once_and_in_order() {
        let ids: Vec<String> = ROWS.iter().map(|row| row.id.to_owned()).collect();
        let wanted: Vec<String> = (1..=108).map(|number| format!("F-{number}")).collect();
        assert_eq!(ids, wanted);
    }

    #[test]
    fn a_row_is_found_however_it_is_written() {
        assert_eq!(find("f-19").map(|row| row.id), Some("F-19"));
        assert!(find("F-109").is_none());
    }
}
