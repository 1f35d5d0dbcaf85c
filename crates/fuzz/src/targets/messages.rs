//! PostgreSQL's messages in both directions: framed the same however they arrive, and read again as they
//! were understood.

use bytes::BytesMut;
use understudy_wal::protocol::{
    BackendMessage, Frame, FrontendMessage, MESSAGE_BYTES_MAX, ProtocolError, take_frame,
};

use super::{Target, about, as_it_is, pieces};
use crate::allocation::within;

pub(super) const BACKEND: Target = Target {
    name: "backend",
    about: "what a PostgreSQL server says",
    words: &[
        b"R\0\0\0\x08\0\0\0\0",
        b"E\0\0\0\x0dSFATAL\0\0",
        b"T\0\0\0\x06\0\0",
        b"D\0\0\0\x06\0\0",
        b"W\0\0\0\x07\0\0\0",
        b"v\0\0\0\x0c\0\0\0\0\xff\xff\xff\xff",
        b"\0\0\0\x04",
        &[0],
    ],
    polish: as_it_is,
    judge: |input| judge(input, BackendMessage::decode, BackendMessage::encode),
};

pub(super) const FRONTEND: Target = Target {
    name: "frontend",
    about: "what a client of the relay says",
    words: &[
        b"Q\0\0\0\x05\0",
        b"d\0\0\0\x04",
        b"c\0\0\0\x04",
        b"X\0\0\0\x04",
        b"p\0\0\0\x04",
        &[0],
    ],
    polish: as_it_is,
    judge: |input| judge(input, FrontendMessage::decode, FrontendMessage::encode),
};

/// Memory for each byte: an option of one byte, empty, is a text of 24, in a list that doubles.
const MEMORY_TIMES: usize = 96;

fn judge<M: PartialEq + std::fmt::Debug>(
    input: &[u8],
    decode: impl Fn(Frame) -> Result<M, ProtocolError>,
    encode: impl Fn(&M, &mut BytesMut),
) -> String {
    let (frames, end) = frames([input]);
    assert_eq!((&frames, &end), (&self::frames(pieces(input)).0, &self::frames(pieces(input)).1));
    let framed: usize = frames.iter().map(|frame| frame.body.len() + 5).sum();
    assert!(framed <= input.len(), "more was taken than there is");
    let mut words = Vec::new();
    for frame in frames {
        let (tag, bytes) = (char::from(frame.tag), frame.body.len());
        match within(bytes, MEMORY_TIMES, || decode(frame)) {
            Ok(message) => {
                let mut written = BytesMut::new();
                encode(&message, &mut written);
                let again = take_frame(&mut written, u32::MAX);
                let again = again.expect("its length is right").expect("it is whole");
                assert!(written.is_empty(), "more than one message was written");
                assert_eq!(decode(again).as_ref(), Ok(&message), "read, written and read again");
                words.push(format!("{tag}{}", about(bytes)));
            }
            Err(ProtocolError::Body { problem, .. }) => words.push(format!("{tag} {problem}")),
            Err(ProtocolError::Tag { .. }) => words.push("tag".to_owned()),
            Err(error @ ProtocolError::Length { .. }) => panic!("the length was right: {error}"),
        }
    }
    words.sort();
    words.dedup();
    // All of them together would be new nearly always.
    words.truncate(2);
    format!("{} {}", words.join(", "), end.is_some())
}

/// Takes messages out of a buffer that fills in pieces, as a connection does.
fn frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<ProtocolError>) {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let before = buffer.len();
            match within(before, 0, || take_frame(&mut buffer, MESSAGE_BYTES_MAX)) {
                Ok(Some(frame)) => {
                    assert_eq!(before - buffer.len(), frame.body.len() + 5);
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
