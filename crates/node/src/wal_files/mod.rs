//! The WAL that a node holds in files, for operators: ranges, single files, verification.
//!
//! It reads files of this node and changes nothing. The same is done without a daemon for a journal that
//! lies in a directory.

mod places;
mod service;
mod wire;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use understudy_proto::v1;
use understudy_proto::v1::verify_wal_response::Step;
use understudy_shipping::journal::JournalError;
use understudy_shipping::journal::inspect::{Place, VerifyOptions, verify};

use crate::config::size;

pub(crate) use service::WalFilesService;

/// How fast a verification reads unless it is told otherwise: a fraction of what a disk can do, so that
/// a commit's WAL does not wait behind it.
pub const RATE_DEFAULT: u64 = 32 << 20;
/// The slowest that may be asked for.
pub const RATE_MIN: u64 = 1 << 20;
/// The fastest.
pub const RATE_MAX: u64 = 4 << 30;

/// Reads a rate, as `64MiB`.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text).ok_or_else(|| size::EXPECTED.to_owned())?;
    if (RATE_MIN..=RATE_MAX).contains(&bytes) {
        return Ok(bytes);
    }
    Err("expected 1MiB to 4GiB a second".to_owned())
}

/// What came of a verification that was not broken off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Things that are wrong, what could not be looked at included.
    pub findings_count: u64,
    /// How long it took.
    pub took: Duration,
}

/// The files of the journal in `dir` that are asked for; works while no daemon runs.
///
/// # Errors
/// When there is no journal, or it cannot be read.
pub fn list_journal(
    dir: &Path,
    request: &v1::ListWalFilesRequest,
) -> Result<Vec<v1::WalFile>, JournalError> {
    Place::of_journal_files(dir)?.map_or_else(|| Ok(Vec::new()), |place| list(&place, request))
}

/// Verifies the journal in `dir`; works while no daemon runs. `None` when `tell` broke it off.
///
/// # Errors
/// When there is no journal.
pub fn verify_journal(
    dir: &Path,
    request: &v1::VerifyWalRequest,
    tell: &mut dyn FnMut(v1::VerifyWalResponse) -> ControlFlow<()>,
) -> Result<Option<Verified>, JournalError> {
    let place = Place::of_journal_files(dir)?;
    let options = wire::options(request);
    Ok(verify_places(place.as_slice(), &options, tell))
}

fn list(
    place: &Place,
    request: &v1::ListWalFilesRequest,
) -> Result<Vec<v1::WalFile>, JournalError> {
    let listed = place.survey()?.files(place);
    let files = listed.iter().map(wire::file);
    Ok(files.filter(|file| wire::is_wanted(file, request)).collect())
}

/// One place after the other.
fn verify_places(
    places: &[Place],
    options: &VerifyOptions,
    tell: &mut dyn FnMut(v1::VerifyWalResponse) -> ControlFlow<()>,
) -> Option<Verified> {
    let began = Instant::now();
    let mut verified = Verified::default();
    for place in places {
        let of = |step| v1::VerifyWalResponse {
            place: place.kind.as_str().to_owned(),
            step: Some(step),
        };
        let ended = verify(place, options, &mut |step| tell(of(wire::step(step, place.kind))));
        let last = match ended {
            Ok(None) => return None,
            Ok(Some(ended)) => {
                verified.read_bytes += ended.read_bytes;
                verified.findings_count += ended.findings_count;
                Step::End(wire::ended(&ended))
            }
            Err(error) => {
                verified.findings_count += 1;
                Step::Trouble(crate::hands::chain(&error))
            }
        };
        if tell(of(last)).is_break() {
            return None;
        }
    }
    verified.took = began.elapsed();
    let done = Some(Step::Done(v1::VerifyDone {}));
    let last = v1::VerifyWalResponse { place: String::new(), step: done };
    tell(last).is_continue().then_some(verified)
}
