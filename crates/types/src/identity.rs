//! Who is who: clusters, nodes, sites, and PostgreSQL's own system identifier.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map($name)
            }
        }
    };
}

uuid_newtype!(
    /// The cluster's identity, made by `understudy init`; every certificate carries it.
    ClusterId
);
uuid_newtype!(
    /// One promotion's own identity: two independent promotions can pick the same timeline number,
    /// and this is what tells them apart.
    PromotionId
);
uuid_newtype!(
    /// Made at random together with an empty Raft directory; a wiped node has a new one.
    Incarnation
);

/// A node's number in consensus: 1…n for the founding members, never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PostgreSQL's system identifier: which `initdb` a data directory descends from.
///
/// Serialised as text, since it exceeds what JSON readers keep exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(SystemId)
    }
}

impl Serialize for SystemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "parse name {text:?}: expected 1 to 63 characters of a-z, 0-9 and '-', \
     beginning and ending with a letter or digit"
)]
pub struct ParseNameError {
    text: String,
}

fn check_name(text: &str) -> Result<(), ParseNameError> {
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = !text.starts_with('-') && !text.ends_with('-');
    if plain && ends && (1..=63).contains(&text.len()) {
        Ok(())
    } else {
        Err(ParseNameError { text: text.to_owned() })
    }
}

macro_rules! name_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// One to 63 characters of `a-z`, `0-9` and `-`, as in a DNS label, so that it can stand in a
        /// certificate's URI, a slot's name (with `-` as `_`) and a metric's label.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                check_name(text)?;
                Ok($name(text.to_owned()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_newtype!(
    /// A node's name: in its configuration, its certificate and the replicated state.
    NodeName
);
name_newtype!(
    /// A place that can be lost as a whole.
    SiteName
);
name_newtype!(
    /// A legal region that data may have to stay in.
    Region
);

/// What a node is able to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// Has a PostgreSQL and may be active or passive.
    Data,
    /// Votes, and keeps no data.
    Witness,
    /// Votes and keeps the WAL, without a PostgreSQL: it is never promoted.
    Journal,
}

impl NodeKind {
    /// As configuration and reports name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            NodeKind::Data => "data",
            NodeKind::Witness => "witness",
            NodeKind::Journal => "journal",
        }
    }

    /// WAL is sent there and kept there.
    pub const fn keeps_wal(self) -> bool {
        match self {
            NodeKind::Data | NodeKind::Journal => true,
            NodeKind::Witness => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_stand_in_a_certificate_are_refused() {
        for text in ["", "-a", "a-", "A", "a b", "a/b", "a.b", "ü", &"a".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?} was accepted");
        }
        assert_eq!("north-1".parse::<NodeName>().unwrap().as_str(), "north-1");
    }
}
