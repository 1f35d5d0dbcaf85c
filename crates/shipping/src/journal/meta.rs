//! The journal's small durable record: epochs, seal, whose WAL it is, the lineage it follows.
//!
//! Replaced as a whole (new file, fsync, rename, fsync of the directory), with a checksum. A damaged
//! one stops the journal: it is never taken for an empty one, which would forget an epoch (I1).

use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;

use understudy_types::{
    Epoch, Lineage, Lsn, PromotionId, SealedEnd, SegmentSize, SystemId, Timeline,
};

use super::error::JournalError;
use super::files;

const FILE: &str = "journal.meta";
const TITLE: &str = "understudy-journal 1";

/// What is durable beside the WAL itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) max_epoch: Epoch,
    pub(super) sealed: Option<Seal>,
    pub(super) content: Option<Content>,
    pub(super) lineage: Vec<Lineage>,
}

/// A seal: `end` is `None` when the journal was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) epoch: Epoch,
    pub(super) end: Option<SealedEnd>,
}

/// Whose WAL it is. Where it ends is found from the WAL itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) system_id: SystemId,
    pub(super) size: SegmentSize,
    pub(super) begin_timeline: Timeline,
    pub(super) begin_lsn: Lsn,
    /// The first durable end that was ever published. Until there is one nothing was acknowledged,
    /// and the rest of a record that the first segment may begin with has not been proven durable.
    pub(super) first_durable_lsn: Option<Lsn>,
}

impl Meta {
    /// The same without any WAL: epochs are never forgotten, a sealed end is.
    pub(super) fn without_wal(&self) -> Meta {
        let sealed = self.sealed.map(|seal| Seal { end: None, ..seal });
        Meta { content: None, lineage: Vec::new(), sealed, max_epoch: self.max_epoch }
    }

    /// Reads it; `None` if there is none.
    pub(super) fn load(dir: &Path) -> Result<Option<Meta>, JournalError> {
        let path = dir.join(FILE);
        let Some(raw) = files::read_if_exists(&path)? else { return Ok(None) };
        let text = String::from_utf8(raw)
            .map_err(|_| JournalError::corrupt(&path, "metadata is not text"))?;
        let meta = parse(&text).ok_or_else(|| {
            JournalError::corrupt(&path, "metadata is damaged, or of a later version")
        })?;
        Ok(Some(meta))
    }

    /// Makes it durable.
    pub(super) fn store(&self, dir: &Path) -> Result<(), JournalError> {
        files::replace_durably(&dir.join(FILE), self.format().as_bytes())
    }

    fn format(&self) -> String {
        let mut text = format!("{TITLE}\nmax_epoch {}\n", self.max_epoch);
        let mut line = |args: std::fmt::Arguments<'_>| {
            text.write_fmt(args).expect("writing to a string cannot fail");
            text.push('\n');
        };
        if let Some(Seal { epoch, end }) = self.sealed {
            match end {
                None => line(format_args!("sealed {epoch}")),
                Some(end) => {
                    line(format_args!("sealed {epoch} {} {}", end.timeline, end.durable_lsn))
                }
            }
        }
        if let Some(c) = self.content {
            let (bytes, begin) = (c.size.bytes(), c.begin_lsn);
            line(format_args!("content {} {bytes} {} {begin}", c.system_id, c.begin_timeline));
            if let Some(lsn) = c.first_durable_lsn {
                line(format_args!("first_durable {lsn}"));
            }
        }
        for l in &self.lineage {
            let fork = l.fork_lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
            line(format_args!("lineage {} {} {} {fork}", l.epoch, l.promotion, l.timeline));
        }
        let checksum = crc32c::crc32c(text.as_bytes());
        writeln!(text, "crc32c {checksum:08x}").expect("writing to a string cannot fail");
        text
    }
}

fn parse(text: &str) -> Option<Meta> {
    let body_bytes = text.trim_end_matches('\n').rfind('\n')? + 1;
    let (body, last) = text.split_at(body_bytes);
    let stated = u32::from_str_radix(last.trim_end().strip_prefix("crc32c ")?, 16).ok()?;
    if stated != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != TITLE {
        return None;
    }
    let mut meta = Meta::default();
    for line in lines {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields.as_slice() {
            ["max_epoch", epoch] => meta.max_epoch = field(epoch)?,
            ["sealed", epoch] => meta.sealed = Some(Seal { epoch: field(epoch)?, end: None }),
            ["sealed", epoch, timeline, lsn] => {
                let (epoch, lsn) = (field(epoch)?, field(lsn)?);
                let timeline = field(timeline)?;
                let end = SealedEnd { epoch, timeline, durable_lsn: lsn, record_end_lsn: lsn };
                meta.sealed = Some(Seal { epoch, end: Some(end) });
            }
            ["content", system_id, size, timeline, begin] => {
                meta.content = Some(Content {
                    system_id: field(system_id)?,
                    size: field(size)?,
                    begin_timeline: field(timeline)?,
                    begin_lsn: field(begin)?,
                    first_durable_lsn: None,
                });
            }
            ["first_durable", lsn] => {
                meta.content.as_mut()?.first_durable_lsn = Some(field(lsn)?);
            }
            ["lineage", epoch, promotion, timeline, fork] => meta.lineage.push(Lineage {
                epoch: field(epoch)?,
                promotion: field::<PromotionId>(promotion)?,
                timeline: field(timeline)?,
                fork_lsn: if *fork == "-" { None } else { Some(field(fork)?) },
            }),
            _ => return None,
        }
    }
    Some(meta)
}

fn field<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Meta {
        let epoch = Epoch { incarnation: 1, number: 7 };
        let (timeline, lsn) = (Timeline::FIRST, Lsn(0x1_0200_0028));
        let end = SealedEnd { epoch, timeline, durable_lsn: lsn, record_end_lsn: lsn };
        let promotion = PromotionId(uuid::Uuid::from_u128(3));
        Meta {
            max_epoch: epoch,
            sealed: Some(Seal { epoch, end: Some(end) }),
            content: Some(Content {
                system_id: SystemId(u64::MAX),
                size: SegmentSize::DEFAULT,
                begin_timeline: timeline,
                begin_lsn: Lsn(0x100_0000),
                first_durable_lsn: Some(lsn),
            }),
            lineage: vec![
                Lineage { epoch: Epoch::NONE, promotion, timeline, fork_lsn: None },
                Lineage { epoch, promotion, timeline: timeline.next(), fork_lsn: Some(lsn) },
            ],
        }
    }

    #[test]
    fn metadata_is_read_back_as_it_was_written() {
        for meta in [Meta::default(), full()] {
            assert_eq!(parse(&meta.format()), Some(meta));
        }
    }

    #[test]
    fn metadata_with_any_byte_changed_or_cut_off_is_refused() {
        let text = full().format();
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let damaged = String::from_utf8(bytes).unwrap();
            assert_ne!(parse(&damaged), Some(full()), "change at {at} was not seen");
            assert_eq!(parse(&text[..at]), None, "cut at {at} was not seen");
        }
    }
}
