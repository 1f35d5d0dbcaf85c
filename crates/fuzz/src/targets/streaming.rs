//! What travels inside CopyData while WAL is streamed, in both directions.

use bytes::{Bytes, BytesMut};
use understudy_wal::protocol::{
    MESSAGE_BYTES_MAX, ProtocolError, StandbyMessage, WAL_DATA_HEADER_BYTES, WalSenderMessage,
    take_frame,
};

use super::{Target, about, as_it_is};
use crate::allocation::within;

pub(super) const TARGET: Target = Target {
    name: "streaming",
    about: "WAL data, keepalives, statuses and feedback",
    words: &[b"w", b"k", b"r", b"h"],
    polish: as_it_is,
    judge,
};

fn judge(input: &[u8]) -> String {
    let body = Bytes::copy_from_slice(input);
    let (sender, standby) = within(0, 0, || {
        (WalSenderMessage::decode(body.clone()), StandbyMessage::decode(body.clone()))
    });
    assert!(sender.is_err() || standby.is_err(), "one message of both sides");
    let mut written = BytesMut::new();
    if let Ok(message) = &sender {
        message.encode(&mut written);
        let again = WalSenderMessage::decode(body_of(&mut written));
        assert_eq!(again.as_ref(), Ok(message), "read, written and read again");
        if let WalSenderMessage::WalData { data, .. } = message {
            assert_eq!(data.len(), input.len() - WAL_DATA_HEADER_BYTES, "WAL is what is left");
            return format!("w {}", about(data.len()));
        }
    }
    if let Ok(message) = &standby {
        message.encode(&mut written);
        let again = StandbyMessage::decode(body_of(&mut written));
        assert_eq!(again.as_ref(), Ok(message), "read, written and read again");
    }
    let problem = |error: &ProtocolError| error.to_string();
    format!(
        "{:?} {:?} {:?}",
        input.first().filter(|_| sender.is_ok() || standby.is_ok()),
        sender.as_ref().err().map(problem),
        standby.as_ref().err().map(problem)
    )
}

fn body_of(written: &mut BytesMut) -> Bytes {
    let frame = take_frame(written, MESSAGE_BYTES_MAX).expect("its length is right");
    assert!(written.is_empty());
    frame.expect("it is whole").body
}
