//! The cluster's own certificate authority: made once by `understudy init`, then kept offline.
//!
//! It only issues; it knows no revocation. Validity: authority ten years, everybody else one year.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use understudy_types::ClusterId;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::files::{FileError, read_file, read_private_file, write_new_file};
use crate::identity::{Identity, IdentityError, single_uri};

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// The authority cannot be made, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of it.
    #[error("load or save the certificate authority")]
    File(#[from] FileError),
    /// Cryptography failed.
    #[error("make {what}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// Not an authority's certificate.
    #[error("read the authority's certificate: {reason}")]
    Certificate {
        /// What is wrong.
        reason: String,
    },
    /// The one URI is wrong.
    #[error("read the authority's certificate")]
    Identity(#[from] IdentityError),
    /// Key and certificate are of different authorities.
    #[error("load the certificate authority: its key does not belong to its certificate")]
    Mismatch,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct IssuedCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key: a secret.
    pub key_pem: String,
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedCertificate").finish_non_exhaustive()
    }
}

impl IssuedCertificate {
    /// Writes the certificate (0644) and its key (0600) as new files.
    ///
    /// # Errors
    /// When either exists or cannot be written.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), FileError> {
        write_new_file(key, 0o600, self.key_pem.as_bytes())?;
        write_new_file(certificate, 0o644, self.certificate_pem.as_bytes())
    }
}

/// A certificate authority that can issue.
pub struct Authority {
    cluster: ClusterId,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

fn make(what: &'static str) -> impl Fn(rcgen::Error) -> AuthorityError {
    move |source| AuthorityError::Make { what, source }
}

/// What every certificate begins with. A day in the past, because clocks differ.
fn params(
    common_name: &str,
    uri: String,
    validity: Duration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Understudy");
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch;
    params.not_before = now - DAY;
    params.not_after = now + validity;
    let uri = uri.try_into().map_err(make("a certificate's URI"))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    Ok(params)
}

fn authority_params(cluster: ClusterId) -> Result<CertificateParams, AuthorityError> {
    let mut params =
        params(&format!("cluster {cluster}"), format!("spiffe://{cluster}"), AUTHORITY_VALIDITY)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

impl Authority {
    /// A new authority for this cluster, ECDSA P-256, valid for ten years.
    ///
    /// # Errors
    /// When cryptography fails.
    pub fn create(cluster: ClusterId) -> Result<Authority, AuthorityError> {
        let key = KeyPair::generate().map_err(make("the authority's key"))?;
        let params = authority_params(cluster)?;
        let certificate = params.self_signed(&key).map_err(make("the authority's certificate"))?;
        let certificate_pem = certificate.pem();
        Ok(Authority { cluster, certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// Reads an authority that [`Authority::save`] wrote.
    ///
    /// # Errors
    /// When a file is missing, readable by others, or not of such an authority.
    pub fn load(certificate: &Path, key: &Path) -> Result<Authority, AuthorityError> {
        let bad = |reason: String| AuthorityError::Certificate { reason };
        let pem = read_file(certificate)?;
        let key = read_private_file(key)?;
        let certificate_pem =
            String::from_utf8(pem).map_err(|_| bad("it is not PEM text".to_owned()))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| bad(error.to_string()))?;
        let (uri, _) = single_uri(&der)?;
        let cluster: ClusterId = uri
            .strip_prefix("spiffe://")
            .and_then(|cluster| cluster.parse().ok())
            .ok_or_else(|| bad(format!("its URI {uri:?} is not spiffe://<cluster>")))?;
        let key = KeyPair::from_pem(&String::from_utf8_lossy(&key))
            .map_err(make("the authority's key from its file"))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|error| bad(error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::Mismatch);
        }
        // The issuer's name and key identifier follow from cluster and key alone.
        let issuer = Issuer::new(authority_params(cluster)?, key);
        Ok(Authority { cluster, certificate_pem, issuer })
    }

    /// Writes the certificate (0644) and the key (0600) as new files.
    ///
    /// # Errors
    /// When either exists or cannot be written.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
        write_new_file(key, 0o600, self.issuer.key().serialize_pem().as_bytes())?;
        write_new_file(certificate, 0o644, self.certificate_pem.as_bytes())?;
        Ok(())
    }

    /// Whose authority it is.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate in PEM, which every node and person needs.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A new key and certificate, ECDSA P-256, valid for one year.
    ///
    /// A node's is good for both sides of a connection, a person's for the client's side only.
    ///
    /// # Errors
    /// When cryptography fails.
    pub fn issue(&self, identity: &Identity) -> Result<IssuedCertificate, AuthorityError> {
        self.issue_at(identity, &[])
    }

    /// The same, with the hosts (names or IP addresses) at which it can be reached.
    ///
    /// Nothing of ours looks at them: who a peer is stands in the URI. They are for clients that know a
    /// server only by its host, as stock gRPC tools do.
    ///
    /// # Errors
    /// When cryptography fails, or a host is neither a name in ASCII nor an address.
    pub fn issue_at(
        &self,
        identity: &Identity,
        hosts: &[String],
    ) -> Result<IssuedCertificate, AuthorityError> {
        let mut params = params(&identity.to_string(), identity.uri(self.cluster), LEAF_VALIDITY)?;
        for host in hosts {
            let name = match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    SanType::DnsName(host.clone().try_into().map_err(make("a certificate's host"))?)
                }
            };
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            Identity::Node(_) => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Identity::Person { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        self.sign(params)
    }

    /// Signs whatever it is given; tests make certificates with it that nobody should accept.
    fn sign(&self, mut params: CertificateParams) -> Result<IssuedCertificate, AuthorityError> {
        let key = KeyPair::generate().map_err(make("a key"))?;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make("a certificate"))?;
        Ok(IssuedCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A certificate with these URIs, otherwise as a node's.
    pub(crate) fn with_uris(authority: &Authority, uris: &[String]) -> IssuedCertificate {
        let mut params = params("test", uris[0].clone(), LEAF_VALIDITY).unwrap();
        let uri = |uri: &String| SanType::URI(uri.clone().try_into().unwrap());
        params.subject_alt_names = uris.iter().map(uri).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        authority.sign(params).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_authority_loads_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));
        let cluster = ClusterId(uuid::Uuid::from_u128(7));
        let authority = Authority::create(cluster).unwrap();
        authority.save(&cert, &key).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Authority::load(&cert, &key).unwrap().cluster(), cluster);
        assert!(authority.save(&cert, &key).unwrap_err().to_string().contains("authority"));

        let other = dir.path().join("other.key");
        let foreign = Authority::create(cluster).unwrap();
        foreign.save(&dir.path().join("other.pem"), &other).unwrap();
        assert!(matches!(Authority::load(&cert, &other), Err(AuthorityError::Mismatch)));
    }
}
