//! What travels inside CopyData while WAL is streamed (manual, "Streaming Replication Protocol").

use bytes::{BufMut, Bytes, BytesMut};
use understudy_types::Lsn;

use super::frame::put_frame;
use super::{Fields, ProtocolError};

/// PostgreSQL's `TimestampTz`: microseconds since 2000-01-01 00:00 UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// 2000-01-01 in microseconds since 1970-01-01.
    const UNIX_MICROS: i64 = 946_684_800_000_000;

    /// The moment this many microseconds after 1970-01-01.
    pub fn from_unix_micros(micros: i64) -> PgTimestamp {
        PgTimestamp(micros.saturating_sub(PgTimestamp::UNIX_MICROS))
    }

    /// Microseconds since 1970-01-01.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(PgTimestamp::UNIX_MICROS)
    }
}

/// From the sender of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalSenderMessage {
    /// `w`, XLogData.
    WalData {
        /// The position of the first byte.
        start_lsn: Lsn,
        /// The end of WAL on the server.
        server_end_lsn: Lsn,
        /// The server's clock when it was sent.
        sent_at: PgTimestamp,
        /// WAL, any part of it; records are not kept whole.
        data: Bytes,
    },
    /// `k`, primary keepalive.
    Keepalive {
        /// The end of WAL on the server.
        server_end_lsn: Lsn,
        /// The server's clock when it was sent.
        sent_at: PgTimestamp,
        /// The standby should answer with its status at once.
        reply_requested: bool,
    },
}

/// Bytes before the WAL itself in an XLogData message's CopyData body.
pub const WAL_DATA_HEADER_BYTES: usize = 25;

impl WalSenderMessage {
    /// Reads a CopyData body; `data` shares its buffer.
    ///
    /// # Errors
    /// When it is neither `w` nor `k`, or too short or too long.
    pub fn decode(body: Bytes) -> Result<WalSenderMessage, ProtocolError> {
        let mut fields = Fields::new(b'd', body);
        match fields.u8()? {
            b'w' => Ok(WalSenderMessage::WalData {
                start_lsn: Lsn(fields.u64()?),
                server_end_lsn: Lsn(fields.u64()?),
                sent_at: PgTimestamp(fields.i64()?),
                data: fields.rest(),
            }),
            b'k' => {
                let message = WalSenderMessage::Keepalive {
                    server_end_lsn: Lsn(fields.u64()?),
                    sent_at: PgTimestamp(fields.i64()?),
                    reply_requested: fields.u8()? != 0,
                };
                fields.end()?;
                Ok(message)
            }
            _ => Err(fields.bad("neither WAL data nor a keepalive")),
        }
    }

    /// Writes it as a whole CopyData message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            WalSenderMessage::WalData { start_lsn, server_end_lsn, sent_at, data } => {
                encode_wal_data(*start_lsn, *server_end_lsn, *sent_at, data, out);
            }
            WalSenderMessage::Keepalive { server_end_lsn, sent_at, reply_requested } => {
                put_frame(out, b'd', |out| {
                    out.put_u8(b'k');
                    out.put_u64(server_end_lsn.0);
                    out.put_i64(sent_at.0);
                    out.put_u8(u8::from(*reply_requested));
                });
            }
        }
    }
}

/// Writes XLogData from a borrowed run of WAL, as a whole CopyData message.
pub fn encode_wal_data(
    start_lsn: Lsn,
    server_end_lsn: Lsn,
    sent_at: PgTimestamp,
    data: &[u8],
    out: &mut BytesMut,
) {
    wal_data_room(start_lsn, server_end_lsn, sent_at, data.len(), out).copy_from_slice(data);
}

/// As `encode_wal_data`, for data that is not in memory yet: returns the room for it, zeroed, which the
/// caller fills before anything goes out.
pub fn wal_data_room(
    start_lsn: Lsn,
    server_end_lsn: Lsn,
    sent_at: PgTimestamp,
    data_bytes: usize,
    out: &mut BytesMut,
) -> &mut [u8] {
    put_frame(out, b'd', |out| {
        out.put_u8(b'w');
        out.put_u64(start_lsn.0);
        out.put_u64(server_end_lsn.0);
        out.put_i64(sent_at.0);
        out.put_bytes(0, data_bytes);
    });
    let begins_at = out.len() - data_bytes;
    &mut out[begins_at..]
}

/// A standby's positions: the end of what was written, flushed and replayed, `Lsn::ZERO` if nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Written to its operating system.
    pub write_lsn: Lsn,
    /// Durable there.
    pub flush_lsn: Lsn,
    /// Replayed there.
    pub apply_lsn: Lsn,
    /// The standby's clock.
    pub sent_at: PgTimestamp,
    /// The server should answer with a keepalive at once.
    pub reply_requested: bool,
}

/// Which transactions a standby's queries still need; an xid of 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HotStandbyFeedback {
    /// The oldest transaction whose rows are needed.
    pub xmin: u32,
    /// The epoch of `xmin`.
    pub xmin_epoch: u32,
    /// The same for catalogs, from replication slots.
    pub catalog_xmin: u32,
    /// The epoch of `catalog_xmin`.
    pub catalog_xmin_epoch: u32,
}

/// From the receiver of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyMessage {
    /// `r`
    Status(StandbyStatus),
    /// `h`
    Feedback {
        /// The standby's clock.
        sent_at: PgTimestamp,
        /// What it needs.
        feedback: HotStandbyFeedback,
    },
}

impl StandbyMessage {
    /// Reads a CopyData body.
    ///
    /// # Errors
    /// When it is neither `r` nor `h`, or too short or too long.
    pub fn decode(body: Bytes) -> Result<StandbyMessage, ProtocolError> {
        let mut fields = Fields::new(b'd', body);
        let message = match fields.u8()? {
            b'r' => StandbyMessage::Status(StandbyStatus {
                write_lsn: Lsn(fields.u64()?),
                flush_lsn: Lsn(fields.u64()?),
                apply_lsn: Lsn(fields.u64()?),
                sent_at: PgTimestamp(fields.i64()?),
                reply_requested: fields.u8()? != 0,
            }),
            b'h' => StandbyMessage::Feedback {
                sent_at: PgTimestamp(fields.i64()?),
                feedback: HotStandbyFeedback {
                    xmin: fields.u32()?,
                    xmin_epoch: fields.u32()?,
                    catalog_xmin: fields.u32()?,
                    catalog_xmin_epoch: fields.u32()?,
                },
            },
            _ => return Err(fields.bad("neither a status nor hot-standby feedback")),
        };
        fields.end()?;
        Ok(message)
    }

    /// Writes it as a whole CopyData message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            StandbyMessage::Status(status) => out.put_slice(&encode_standby_status(status)),
            StandbyMessage::Feedback { sent_at, feedback } => put_frame(out, b'd', |out| {
                out.put_u8(b'h');
                out.put_i64(sent_at.0);
                out.put_u32(feedback.xmin);
                out.put_u32(feedback.xmin_epoch);
                out.put_u32(feedback.catalog_xmin);
                out.put_u32(feedback.catalog_xmin_epoch);
            }),
        }
    }
}

/// A status update as a whole CopyData message, without allocation: the gate writes it under a lock.
pub fn encode_standby_status(status: &StandbyStatus) -> [u8; 39] {
    let mut message = [0; 39];
    message[0] = b'd';
    message[1..5].copy_from_slice(&38u32.to_be_bytes());
    message[5] = b'r';
    message[6..14].copy_from_slice(&status.write_lsn.0.to_be_bytes());
    message[14..22].copy_from_slice(&status.flush_lsn.0.to_be_bytes());
    message[22..30].copy_from_slice(&status.apply_lsn.0.to_be_bytes());
    message[30..38].copy_from_slice(&status.sent_at.0.to_be_bytes());
    message[38] = u8::from(status.reply_requested);
    message
}
