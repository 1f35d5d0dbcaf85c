//! Who a certificate says its bearer is, read strictly: what is not exactly understood is refused.
//!
//! Only reads; whether the certificate is genuine is the verifiers' business (`tls`).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use understudy_types::{ClusterId, NodeName};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// What a person may do; each role may do all that the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look.
    Viewer,
    /// Planned, loss-free operations: switchover, pause, rejoin.
    Operator,
    /// Change configuration and membership.
    Administrator,
    /// Accept loss; kept in a safe.
    BreakGlass,
}

impl Role {
    /// Every role, weakest first.
    pub const ALL: [Role; 4] =
        [Role::Viewer, Role::Operator, Role::Administrator, Role::BreakGlass];

    /// As it stands in a certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Administrator => "administrator",
            Role::BreakGlass => "break-glass",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parse role {0:?}: expected viewer, operator, administrator or break-glass")]
pub struct ParseRoleError(String);

impl FromStr for Role {
    type Err = ParseRoleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Role::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| ParseRoleError(text.to_owned()))
    }
}

/// The bearer of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A node of the cluster.
    Node(NodeName),
    /// A person, or a program that acts for one.
    Person {
        /// Follows the same rules as a node's name.
        name: String,
        /// What they may do.
        role: Role,
    },
}

impl Identity {
    /// The URI that stands in the certificate.
    pub fn uri(&self, cluster: ClusterId) -> String {
        match self {
            Identity::Node(name) => format!("spiffe://{cluster}/node/{name}"),
            Identity::Person { name, role } => format!("spiffe://{cluster}/person/{name}/{role}"),
        }
    }

    /// Reads a URI as [`Identity::uri`] writes it, and in no other form.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse_uri(uri: &str) -> Result<(ClusterId, Identity), IdentityError> {
        let bad = || IdentityError::Uri { uri: uri.to_owned() };
        let rest = uri.strip_prefix("spiffe://").ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let cluster: ClusterId = parts.next().unwrap_or_default().parse().map_err(|_| bad())?;
        let parts: Vec<&str> = parts.collect();
        let identity = match parts.as_slice() {
            ["node", name] => Identity::Node(name.parse().map_err(|_| bad())?),
            ["person", name, role] => {
                let name: NodeName = name.parse().map_err(|_| bad())?;
                let role = role.parse().map_err(|_| bad())?;
                Identity::Person { name: name.as_str().to_owned(), role }
            }
            _ => return Err(bad()),
        };
        // A UUID has several spellings; one identity must have one.
        if identity.uri(cluster) == uri { Ok((cluster, identity)) } else { Err(bad()) }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Node(name) => write!(f, "node {name}"),
            Identity::Person { name, role } => write!(f, "person {name} ({role})"),
        }
    }
}

/// What a peer's or our own certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The trust domain.
    pub cluster: ClusterId,
    /// The bearer.
    pub identity: Identity,
    /// When it expires, wall-clock time.
    pub not_after: SystemTime,
}

/// A certificate that is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509.
    #[error("parse certificate: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// There must be exactly one URI among the subject alternative names.
    #[error(
        "read identity from certificate: it has {count} URIs among its subject alternative names, expected exactly one"
    )]
    Uris {
        /// How many it has.
        count: usize,
    },
    /// Beside the URI only host names and addresses may stand.
    #[error(
        "read identity from certificate: a subject alternative name is neither a URI nor a host name or address"
    )]
    OtherName,
    /// Not one of the two forms.
    #[error(
        "read identity from URI {uri:?}: expected spiffe://<cluster>/node/<name> \
         or spiffe://<cluster>/person/<name>/<role>"
    )]
    Uri {
        /// What it says.
        uri: String,
    },
    /// It belongs to another cluster.
    #[error("check certificate of {identity}: it is of cluster {found}, not of {expected}")]
    OtherCluster {
        /// The bearer there.
        identity: Identity,
        /// Its cluster.
        found: ClusterId,
        /// Ours.
        expected: ClusterId,
    },
}

/// The single URI of a certificate and the end of its validity.
pub(crate) fn single_uri(der: &[u8]) -> Result<(String, SystemTime), IdentityError> {
    let malformed = |reason: String| IdentityError::Malformed { reason };
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes follow it", rest.len())));
    }
    // An extension that stands there twice is an error of `subject_alternative_name`.
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| malformed(error.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // For clients that are not ours and know servers by their host; they identify nobody here.
            GeneralName::DNSName(_) | GeneralName::IPAddress(_) => {}
            _ => return Err(IdentityError::OtherName),
        }
    }
    let [uri] = uris.as_slice() else {
        return Err(IdentityError::Uris { count: uris.len() });
    };
    Ok(((*uri).to_owned(), end_of(&certificate)))
}

/// When a certificate expires.
pub(crate) fn end_of(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

impl PeerCertificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// When its subject alternative names do not have exactly one URI, of one of the two forms, or
    /// anything else beside hosts.
    pub fn parse(der: &[u8]) -> Result<PeerCertificate, IdentityError> {
        let (uri, not_after) = single_uri(der)?;
        let (cluster, identity) = Identity::parse_uri(&uri)?;
        Ok(PeerCertificate { cluster, identity, not_after })
    }

    /// The same, refusing every cluster but `expected`.
    ///
    /// # Errors
    /// As [`PeerCertificate::parse`], and for another cluster.
    pub fn parse_of(der: &[u8], expected: ClusterId) -> Result<PeerCertificate, IdentityError> {
        let parsed = PeerCertificate::parse(der)?;
        if parsed.cluster == expected {
            Ok(parsed)
        } else {
            let (identity, found) = (parsed.identity, parsed.cluster);
            Err(IdentityError::OtherCluster { identity, found, expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "6f1a2b3c-0000-4000-8000-0123456789ab";

    #[test]
    fn an_identity_reads_back_what_it_wrote() {
        let cluster = CLUSTER.parse().unwrap();
        let node = Identity::Node("north".parse().unwrap());
        let person = |role| Identity::Person { name: "ada".to_owned(), role };
        for identity in [node, person(Role::Viewer), person(Role::BreakGlass)] {
            let uri = identity.uri(cluster);
            assert_eq!(Identity::parse_uri(&uri), Ok((cluster, identity)));
        }
    }

    #[test]
    fn a_uri_of_any_other_form_is_refused() {
        for tail in [
            "node",
            "node/",
            "node/north/",
            "node/north/x",
            "node/North",
            "person/ada",
            "person/ada/root",
            "person/ada/viewer/x",
            "",
        ] {
            let uri = format!("spiffe://{CLUSTER}/{tail}");
            assert!(Identity::parse_uri(&uri).is_err(), "{uri} was accepted");
        }
        let compact = CLUSTER.replace('-', "");
        assert!(Identity::parse_uri(&format!("spiffe://{compact}/node/north")).is_err());
        assert!(
            Identity::parse_uri(&format!("spiffe://{}/node/n", CLUSTER.to_uppercase())).is_err()
        );
        assert!(Identity::parse_uri(&format!("https://{CLUSTER}/node/north")).is_err());
    }

    #[test]
    fn roles_grow() {
        assert!(Role::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
