//! Round trips through the codec, and what it does with garbage.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use understudy_types::{Lsn, Timeline};

use super::*;

fn text() -> impl Strategy<Value = String> {
    "[^\\x00]{0,20}"
}

fn blob() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn error_fields() -> impl Strategy<Value = ErrorFields> {
    prop::collection::vec((1u8.., text()), 0..6).prop_map(|fields| ErrorFields { fields })
}

fn backend() -> impl Strategy<Value = BackendMessage> {
    let column = (text(), any::<u32>(), any::<i16>())
        .prop_map(|(name, type_oid, type_width)| Column { name, type_oid, type_width });
    prop_oneof![
        Just(BackendMessage::Authentication(Authentication::Ok)),
        (1u32..20).prop_map(|c| BackendMessage::Authentication(Authentication::Requested(c))),
        (text(), text()).prop_map(|(name, value)| BackendMessage::ParameterStatus { name, value }),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 4..=256)).prop_map(
            |(process_id, secret)| BackendMessage::BackendKeyData {
                process_id,
                secret: secret.into()
            }
        ),
        (any::<u32>(), prop::collection::vec(text(), 0..4)).prop_map(|(newest_minor, options)| {
            BackendMessage::NegotiateProtocolVersion { newest_minor, options }
        }),
        any::<u8>().prop_map(|status| BackendMessage::ReadyForQuery { status }),
        error_fields().prop_map(BackendMessage::ErrorResponse),
        error_fields().prop_map(BackendMessage::NoticeResponse),
        prop::collection::vec(column, 0..5).prop_map(BackendMessage::RowDescription),
        prop::collection::vec(prop::option::of(blob()), 0..5).prop_map(BackendMessage::DataRow),
        text().prop_map(BackendMessage::CommandComplete),
        Just(BackendMessage::EmptyQueryResponse),
        Just(BackendMessage::CopyBothResponse),
        blob().prop_map(BackendMessage::CopyData),
        Just(BackendMessage::CopyDone),
    ]
}

fn frontend() -> impl Strategy<Value = FrontendMessage> {
    prop_oneof![
        text().prop_map(FrontendMessage::Query),
        blob().prop_map(FrontendMessage::CopyData),
        Just(FrontendMessage::CopyDone),
        text().prop_map(FrontendMessage::CopyFail),
        Just(FrontendMessage::Terminate),
        Just(FrontendMessage::Sync),
        Just(FrontendMessage::Flush),
        blob().prop_map(FrontendMessage::Password),
    ]
}

fn startup() -> impl Strategy<Value = StartupRequest> {
    let pairs = prop::collection::vec(("[^\\x00]{1,20}", text()), 0..6);
    prop_oneof![
        Just(StartupRequest::Ssl),
        Just(StartupRequest::GssEncryption),
        (any::<u32>(), blob())
            .prop_map(|(process_id, secret)| StartupRequest::Cancel { process_id, secret }),
        (0u32..4, pairs).prop_map(|(minor, parameters)| StartupRequest::Startup(Startup {
            protocol_version: 3 << 16 | minor,
            parameters
        })),
    ]
}

fn whole(buffer: &mut BytesMut) -> Frame {
    take_frame(buffer, MESSAGE_BYTES_MAX).unwrap().expect("a whole message")
}

proptest! {
    #[test]
    fn a_backend_message_is_read_as_it_was_written(message in backend(), cut in any::<prop::sample::Index>()) {
        let mut buffer = BytesMut::new();
        message.encode(&mut buffer);
        let mut part = BytesMut::from(&buffer[..cut.index(buffer.len())]);
        prop_assert_eq!(take_frame(&mut part, MESSAGE_BYTES_MAX), Ok(None));
        prop_assert_eq!(BackendMessage::decode(whole(&mut buffer)).unwrap(), message);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn a_frontend_message_is_read_as_it_was_written(message in frontend()) {
        let mut buffer = BytesMut::new();
        message.encode(&mut buffer);
        prop_assert_eq!(FrontendMessage::decode(whole(&mut buffer)).unwrap(), message);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn a_startup_packet_is_read_as_it_was_written(request in startup()) {
        let mut buffer = BytesMut::new();
        encode_startup(&request, &mut buffer);
        prop_assert_eq!(take_startup(&mut buffer).unwrap(), Some(request));
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn streaming_messages_are_read_as_they_were_written(
        (a, b, c, at) in any::<(u64, u64, u64, i64)>(), x in any::<[u32; 4]>(), flag in any::<bool>(), data in blob()
    ) {
        let sent_at = PgTimestamp(at);
        let mut buffer = BytesMut::new();
        let sent = [
            WalSenderMessage::WalData { start_lsn: Lsn(a), server_end_lsn: Lsn(b), sent_at, data },
            WalSenderMessage::Keepalive { server_end_lsn: Lsn(b), sent_at, reply_requested: flag },
        ];
        for message in sent {
            message.encode(&mut buffer);
            prop_assert_eq!(WalSenderMessage::decode(whole(&mut buffer).body).unwrap(), message);
        }
        let status = StandbyStatus {
            write_lsn: Lsn(a), flush_lsn: Lsn(b), apply_lsn: Lsn(c), sent_at, reply_requested: flag,
        };
        let feedback = HotStandbyFeedback {
            xmin: x[0], xmin_epoch: x[1], catalog_xmin: x[2], catalog_xmin_epoch: x[3],
        };
        for message in [StandbyMessage::Status(status), StandbyMessage::Feedback { sent_at, feedback }] {
            message.encode(&mut buffer);
            prop_assert_eq!(StandbyMessage::decode(whole(&mut buffer).body).unwrap(), message);
        }
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(tag in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let body = Bytes::from(bytes.clone());
        let _ = BackendMessage::decode(Frame { tag, body: body.clone() });
        let _ = FrontendMessage::decode(Frame { tag, body: body.clone() });
        let _ = WalSenderMessage::decode(body.clone());
        let _ = StandbyMessage::decode(body.clone());
        let _ = take_frame(&mut BytesMut::from(&body[..]), MESSAGE_BYTES_MAX);
        let _ = take_startup(&mut BytesMut::from(&body[..]));
        let mut framed = BytesMut::new();
        framed.put_u32(u32::try_from(bytes.len()).unwrap() + 8);
        framed.put_u32(3 << 16);
        framed.put_slice(&bytes);
        let _ = take_startup(&mut framed);
        let _ = ReplicationCommand::parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_text_is_a_command_or_an_error(words in prop::collection::vec(prop_oneof![
        Just("START_REPLICATION".to_owned()), Just("SLOT".to_owned()), Just("0/1".to_owned()),
        Just("TIMELINE".to_owned()), Just("1".to_owned()), Just("\"".to_owned()), text()], 0..8)) {
        let _ = ReplicationCommand::parse(&words.join(" "));
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_its_bytes_arrive(
        tag in any::<u8>(), length in prop_oneof![0u32..4, MESSAGE_BYTES_MAX + 1..]
    ) {
        let mut buffer = BytesMut::new();
        buffer.put_u8(tag);
        buffer.put_u32(length);
        prop_assert!(take_frame(&mut buffer, MESSAGE_BYTES_MAX).is_err());
    }
}

#[test]
fn a_startup_packet_out_of_bounds_is_refused_before_its_bytes_arrive() {
    for length in [0, 4, 7, STARTUP_BYTES_MAX + 1, u32::MAX] {
        assert!(take_startup(&mut BytesMut::from(&length.to_be_bytes()[..])).is_err(), "{length}");
    }
}

#[test]
fn replication_commands_are_read_in_any_case() {
    use ReplicationCommand as C;
    let two = Timeline::new(2);
    let cases = [
        ("IDENTIFY_SYSTEM", C::IdentifySystem),
        ("identify_system;", C::IdentifySystem),
        ("TIMELINE_HISTORY 2", C::TimelineHistory(two.unwrap())),
        ("SHOW wal_segment_size", C::Show("wal_segment_size".to_owned())),
        ("READ_REPLICATION_SLOT \"A b\"", C::ReadReplicationSlot("A b".to_owned())),
        (
            "START_REPLICATION SLOT \"s\" PHYSICAL 16/B374D848 TIMELINE 2",
            C::StartReplication {
                slot: Some("s".to_owned()),
                start_lsn: Lsn(0x16_B374_D848),
                timeline: two,
            },
        ),
        (
            "start_replication 0/3000000",
            C::StartReplication { slot: None, start_lsn: Lsn(0x300_0000), timeline: None },
        ),
        ("START_REPLICATION SLOT s LOGICAL 0/0", C::Unsupported("START_REPLICATION LOGICAL")),
        (
            "CREATE_REPLICATION_SLOT \"x\" PHYSICAL RESERVE_WAL",
            C::Unsupported("CREATE_REPLICATION_SLOT"),
        ),
    ];
    for (text, command) in cases {
        assert_eq!(C::parse(text).unwrap(), command, "{text}");
    }
    for text in [
        "",
        "SELECT 1",
        "START_REPLICATION",
        "START_REPLICATION 0/0 TIMELINE 0",
        "SHOW",
        "TIMELINE_HISTORY x",
        "IDENTIFY_SYSTEM now",
        "SHOW \"x",
    ] {
        assert!(C::parse(text).is_err(), "{text}");
    }
}
