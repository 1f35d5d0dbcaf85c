//! What a segment hashes to: SHA-256 to judge whether two sites hold the same, and a checksum of each page
//! to say where they begin to differ.

use sha2::{Digest as _, Sha256};
use understudy_types::{Lsn, Timeline};
use understudy_wal::format::PAGE_BYTES;

/// The bytes of one segment, hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentDigest {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its file.
    pub file: String,
    /// The first byte that was hashed: where the segment begins.
    pub from_lsn: Lsn,
    /// The position after the last one.
    pub to_lsn: Lsn,
    /// Of all of them.
    pub sha256: [u8; 32],
    /// CRC-32C of each page, the last one maybe shorter.
    pub page_crc32c: Vec<u32>,
    /// Nothing was found wrong in it.
    pub sound: bool,
}

/// Hashes as bytes come in, in order.
pub(super) struct Hasher {
    at: Lsn,
    to_lsn: Lsn,
    sha256: Sha256,
    pages: Vec<u32>,
}

impl Hasher {
    /// Of the bytes from the beginning of a page to `to_lsn`; more may be offered.
    pub(super) fn new(from_lsn: Lsn, to_lsn: Lsn) -> Hasher {
        Hasher { at: from_lsn, to_lsn, sha256: Sha256::new(), pages: Vec::new() }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let wanted = self.to_lsn.bytes_since(self.at).min(bytes.len() as u64) as usize;
        let mut bytes = &bytes[..wanted];
        self.sha256.update(bytes);
        while !bytes.is_empty() {
            let in_page = self.at.0 % PAGE_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min((PAGE_BYTES - in_page) as usize));
            match self.pages.last_mut().filter(|_| in_page > 0) {
                Some(page) => *page = crc32c::crc32c_append(*page, now),
                None => self.pages.push(crc32c::crc32c(now)),
            }
            self.at = self.at + now.len() as u64;
            bytes = later;
        }
    }

    pub(super) fn finish(
        self,
        timeline: Timeline,
        file: String,
        from_lsn: Lsn,
        sound: bool,
    ) -> SegmentDigest {
        let (sha256, to_lsn) = (self.sha256.finalize().into(), self.at);
        SegmentDigest { timeline, file, from_lsn, to_lsn, sha256, page_crc32c: self.pages, sound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_do_not_matter_and_nothing_behind_the_cut_is_hashed() {
        let bytes: Vec<u8> = (0..30_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let (from, to) = (Lsn(1 << 20), Lsn((1 << 20) + 20_000));
        let hash = |pieces: usize| {
            let mut hasher = Hasher::new(from, to);
            bytes.chunks(pieces).for_each(|piece| hasher.update(piece));
            hasher.finish(Timeline::FIRST, String::new(), from, true)
        };
        let whole = hash(bytes.len());
        assert_eq!((whole.to_lsn, whole.page_crc32c.len()), (to, 3));
        assert_eq!(whole.page_crc32c[2], crc32c::crc32c(&bytes[16_384..20_000]));
        assert_eq!(hash(1), whole);
        assert_eq!(hash(8191), whole);
        let own: [u8; 32] = Sha256::digest(&bytes[..20_000]).into();
        assert_eq!(whole.sha256, own);
    }
}
