//! The first packet of a connection, which has no type byte: startup, encryption and cancel requests.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::put_text;
use super::{Fields, ProtocolError};

/// The greatest startup packet accepted (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_BYTES_MAX: u32 = 10_000;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// What a client opens with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupRequest {
    /// It asks for TLS; answered with one byte, `S` or `N`, then it goes on.
    Ssl,
    /// It asks for GSSAPI encryption; answered with one byte, `G` or `N`, then it goes on.
    GssEncryption,
    /// It asks to cancel what another connection does; nothing is answered.
    Cancel {
        /// The other connection's `BackendKeyData`.
        process_id: u32,
        /// Its secret.
        secret: Bytes,
    },
    /// It wants a session.
    Startup(Startup),
}

/// The parameters of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// Protocol version, major in the high 16 bits; 3.0 is 0x30000.
    pub protocol_version: u32,
    /// Names and values, as sent.
    pub parameters: Vec<(String, String)>,
}

impl Startup {
    /// The value of a parameter; the last one counts, as in PostgreSQL.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The role; empty if none was sent.
    pub fn user(&self) -> &str {
        self.parameter("user").unwrap_or_default()
    }
}

/// How long the packet at the front of `buffer` is, with its length word; `None` while unknown.
///
/// # Errors
/// When the length is out of bounds.
pub fn startup_length(buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
    let Some(word) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*word);
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(ProtocolError::Length { tag: '\0', length, max: STARTUP_BYTES_MAX });
    }
    Ok(Some(length as usize))
}

/// Takes one packet off the front of `buffer`; `None` while it is incomplete.
///
/// # Errors
/// When the length is out of bounds, the protocol is not version 3, or parameters are malformed.
pub fn take_startup(buffer: &mut BytesMut) -> Result<Option<StartupRequest>, ProtocolError> {
    let Some(length) = startup_length(buffer)? else { return Ok(None) };
    if buffer.len() < length {
        return Ok(None);
    }
    let mut packet = buffer.split_to(length);
    packet.advance(4);
    let mut fields = Fields::new(0, packet.freeze());
    let code = fields.u32()?;
    let request = match code {
        SSL => StartupRequest::Ssl,
        GSS => StartupRequest::GssEncryption,
        CANCEL => {
            let process_id = fields.u32()?;
            return Ok(Some(StartupRequest::Cancel { process_id, secret: fields.rest() }));
        }
        version if version >> 16 == 3 => {
            let mut parameters = Vec::new();
            loop {
                let name = fields.text()?;
                if name.is_empty() {
                    break;
                }
                parameters.push((name, fields.text()?));
            }
            StartupRequest::Startup(Startup { protocol_version: version, parameters })
        }
        _ => return Err(fields.bad("the protocol version is not 3")),
    };
    fields.end()?;
    Ok(Some(request))
}

/// Writes a packet.
pub fn encode_startup(request: &StartupRequest, out: &mut BytesMut) {
    let at = out.len();
    out.put_u32(0);
    match request {
        StartupRequest::Ssl => out.put_u32(SSL),
        StartupRequest::GssEncryption => out.put_u32(GSS),
        StartupRequest::Cancel { process_id, secret } => {
            out.put_u32(CANCEL);
            out.put_u32(*process_id);
            out.put_slice(secret);
        }
        StartupRequest::Startup(startup) => {
            out.put_u32(startup.protocol_version);
            for (name, value) in &startup.parameters {
                put_text(out, name);
                put_text(out, value);
            }
            out.put_u8(0);
        }
    }
    let length = u32::try_from(out.len() - at).expect("a startup packet is far below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}
