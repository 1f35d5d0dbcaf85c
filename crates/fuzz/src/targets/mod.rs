//! What reads bytes from outside, and what must hold for whatever it reads.

mod damage;
mod history;
mod layout;
mod messages;
mod pages;
mod peers;
mod records;
mod scanner;
mod shipping;
mod startup;
mod streaming;
mod wal;

use crate::random::Random;

/// Something that reads bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory in the corpus.
    pub name: &'static str,
    /// What it reads.
    pub about: &'static str,
    /// Pieces of the format that chance would hardly make.
    pub words: &'static [&'static [u8]],
    /// Makes some of the inputs right in what chance never gets right, such as checksums.
    pub(crate) polish: fn(&mut Vec<u8>, &mut Random),
    /// Reads an input, panics if something does not hold, and says coarsely what it was.
    pub judge: fn(&[u8]) -> String,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    pages::TARGET,
    scanner::TARGET,
    damage::TARGET,
    records::TRANSACTIONS,
    records::RECORDS,
    messages::BACKEND,
    messages::FRONTEND,
    streaming::TARGET,
    startup::TARGET,
    startup::COMMANDS,
    history::TARGET,
    shipping::TO_SOURCE,
    shipping::FROM_SOURCE,
    peers::TARGET,
];

fn as_it_is(_: &mut Vec<u8>, _: &mut Random) {}

/// A count as an answer: its magnitude.
fn about(count: usize) -> u32 {
    usize::BITS - count.leading_zeros()
}

/// Cuts `bytes` into pieces of sizes that depend on nothing but the bytes, short ones among them.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut random = Random::new(u64::from(crc32c::crc32c(bytes)));
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let most = if random.once_in(3) { 9000 } else { 40 };
        let (piece, left) = rest.split_at((1 + random.below(most)).min(rest.len()));
        rest = left;
        Some(piece)
    })
}
