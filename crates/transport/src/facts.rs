//! What a certificate says for people: expiry, issuer, fingerprint. Nothing is decided by it.

use std::fmt::Write as _;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::identity::{IdentityError, end_of};

/// A certificate in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Fingerprint of the trusted authority that issued it; `None` for an authority itself.
    pub issued_by: Option<String>,
    /// When it expires, wall-clock time.
    pub not_after: SystemTime,
    /// SHA-256 over its DER form, in lower-case hexadecimal digits.
    pub sha256: String,
}

impl CertificateFacts {
    /// Reads a certificate in DER; who issued it is not known from it alone.
    ///
    /// # Errors
    /// When it is not X.509.
    pub(crate) fn read(der: &[u8]) -> Result<CertificateFacts, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Malformed { reason: error.to_string() })?;
        let mut sha256 = String::new();
        for byte in Sha256::digest(der) {
            write!(sha256, "{byte:02x}").expect("a String takes everything");
        }
        Ok(CertificateFacts { issued_by: None, not_after: end_of(&certificate), sha256 })
    }
}
