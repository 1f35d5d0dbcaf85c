//! The types openraft is instantiated with.
//!
//! Commands and outcomes stay opaque bytes here; decoding belongs to the state machine.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

openraft::declare_raft_types!(
    /// openraft's parameters for one Understudy cluster: node numbers, and gRPC addresses as nodes.
    pub RaftTypes:
        D = LogCommand,
        R = LogReply,
);

/// An encoded command in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogCommand(pub Vec<u8>);

/// An encoded outcome; empty for entries that carry no command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReply(pub Vec<u8>);

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let nibble = |c: u8| char::from(c).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}

// One string instead of JSON's array of numbers: half the size and far quicker to read back.
macro_rules! as_hex {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&to_hex(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                from_hex(&text)
                    .map($name)
                    .ok_or_else(|| D::Error::custom("not a hexadecimal string"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} bytes", self.0.len())
            }
        }
    };
}

as_hex!(LogCommand);
as_hex!(LogReply);
