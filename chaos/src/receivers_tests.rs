//! That a run is repeatable, and that each of its judgements can fail.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::copies::SEGMENT_BYTES;

fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut plan = Plan::of(seed);
    (0..count).map(|_| plan.step()).collect()
}

#[test]
fn a_seed_draws_the_same_steps_each_time_and_another_one_others() {
    assert_eq!(steps(7, 100), steps(7, 100));
    assert_ne!(steps(7, 100), steps(8, 100));
}

#[test]
fn every_fault_comes_within_its_bounds() {
    let drawn = steps(1, 400);
    for kind in KINDS {
        assert!(drawn.iter().any(|step| step.kind == kind), "{kind:?} never came");
    }
    for step in drawn {
        assert!(step.lasts >= Duration::from_millis(200) && step.lasts <= seconds(6), "{step:?}");
    }
}

/// A run in which all was well: two segments, both kinds of the dial, every work.
struct Run {
    round: Round,
    done: Done,
    assured: Assured,
    gauged: Gauged,
    verified: Value,
    _directory: tempfile::TempDir,
}

impl Run {
    fn good() -> Run {
        let directory = tempfile::tempdir().unwrap();
        let (journal, pg_wal) = (directory.path().join("wal"), directory.path().join("pg_wal"));
        fs::create_dir_all(journal.join("00000001")).unwrap();
        fs::create_dir(&pg_wal).unwrap();
        for name in ["000000010000000000000003", "000000010000000000000004"] {
            let content = vec![5; usize::try_from(SEGMENT_BYTES).unwrap()];
            fs::write(journal.join("00000001").join(name), &content).unwrap();
            fs::write(pg_wal.join(name), &content).unwrap();
        }
        let mut run = Run {
            round: Round::new(Mode::Zero),
            done: Done::default(),
            assured: Assured { under_zero: 1, under_bounded: 1, ..Assured::default() },
            gauged: Gauged::of(Copies::of(journal, pg_wal)),
            verified: json!({ "sound": true }),
            _directory: directory,
        };
        run.round.faults.insert(Kind::LinkCut, 20);
        run.round.modes.push(Mode::Bounded);
        run.done.do_every_work();
        run.gauged.exposure_samples = 1;
        run.gauged.peaks.set_all(1 << 20);
        run.gauged.copies.look().unwrap();
        run
    }

    fn judged(&self) -> Result<()> {
        let Run { round, done, assured, gauged, verified, .. } = self;
        judge(round, done, assured, gauged, Segment::named(END).unwrap(), verified)
    }

    /// The verdict after `spoil`.
    #[track_caller]
    fn fails_after(spoil: impl FnOnce(&mut Run), words: &str) {
        let mut run = Run::good();
        spoil(&mut run);
        let error = format!("{:#}", run.judged().unwrap_err());
        assert!(error.contains(words), "{error}");
    }
}

const END: &str = "000000010000000000000004";

#[test]
fn a_good_run_passes() {
    Run::good().judged().unwrap();
}

#[test]
fn each_judgement_can_fail() {
    Run::fails_after(|run| run.gauged.copies.wrong.push("a gap".to_owned()), "a gap");
    Run::fails_after(|run| run.gauged.wrong.push("too much".to_owned()), "too much");
    Run::fails_after(|run| run.assured.wrong.push("not held".to_owned()), "not held");
    Run::fails_after(|run| run.done = Done::default(), "never came to");
    Run::fails_after(|run| run.assured.under_bounded = 0, "looked up under bounded");
    Run::fails_after(|run| run.round.faults.clear(), "no fault was played");
    let left_out = |run: &mut Run| run.round.left_out = vec!["no WAL".to_owned(); 3];
    Run::fails_after(left_out, "3 faults could not be begun: no WAL");
    Run::fails_after(|run| run.gauged.copies.segments -= 1, "1 segments are the same, of 2");
    Run::fails_after(|run| run.gauged.peaks.set_all(1 << 30), "bytes in use");
    Run::fails_after(|run| run.gauged.peaks = gauges::Peaks::default(), "was never seen");
    Run::fails_after(|run| run.gauged.journal_bytes_max = 1 << 40, "the journal had");
    Run::fails_after(|run| run.verified = json!({ "sound": false }), "not content");
    Run::fails_after(|run| run.gauged.exposure_samples = 0, "never stated its exposure");
}

#[test]
fn a_run_whose_last_segment_was_not_compared_fails() {
    let spoil = |run: &mut Run| {
        run.gauged.copies = Copies::of(PathBuf::new(), PathBuf::new());
    };
    Run::fails_after(spoil, "no segment was compared");
    let run = Run::good();
    let later = Segment::named("000000010000000000000005").unwrap();
    let error = ensure_whole(&run.gauged.copies, later).unwrap_err();
    assert!(format!("{error:#}").contains("written up to 000000010000000000000005"));
}
