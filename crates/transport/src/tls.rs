//! TLS 1.3 between known identities: our own, and what the other side must prove.
//!
//! The chain is checked by webpki against the cluster's own authority and nothing else; the identity
//! then comes from the certificate's URI. No host name is looked at, no system trust store is used.
//! Sessions are never resumed: every connection proves its certificate anew, so that an expired one
//! ends with its connection.
//!
//! An identity can be replaced while it is in use: each handshake takes the whole of what is current at
//! its beginning, certificate and trust alike, and what is established goes on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use understudy_types::{ClusterId, ClusterIncarnation, NodeName};

use crate::facts::CertificateFacts;
use crate::files::{FileError, read_file, read_private_file};
use crate::identity::{Identity, IdentityError, PeerCertificate};

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of it.
    #[error("load TLS identity")]
    File(#[from] FileError),
    /// Not PEM of the expected kind.
    #[error("parse {what} {}: {reason}", path.display())]
    Pem {
        /// Authority, certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The certificate is nobody's.
    #[error("read certificate {}", path.display())]
    Identity {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// Two files of different pairs.
    #[error(
        "load TLS identity: key {} does not belong to certificate {}",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// Another authority's, expired, or not valid yet.
    #[error("verify certificate {} against authority {}", certificate.display(), ca.display())]
    NotTrusted {
        /// The certificate's file.
        certificate: PathBuf,
        /// The authority's file.
        ca: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A new certificate is of somebody else than the one in use.
    #[error("take a new certificate into use: it is of {found}, expected {wanted}")]
    OtherBearer {
        /// Who the new one identifies.
        found: String,
        /// Who the one in use does.
        wanted: String,
    },
    /// A configuration that rustls refuses.
    #[error("configure TLS")]
    Configure(#[source] rustls::Error),
}

/// Whom a connection is with; a gRPC handler finds it in its request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What its certificate says.
    pub identity: Identity,
    /// Where it connects from.
    pub address: std::net::SocketAddr,
    /// When its certificate expires.
    pub not_after: SystemTime,
}

/// A certificate with its key, and the authority that peers are checked against. Cheap to clone; all
/// clones see what [`TlsIdentity::replace`] brings.
#[derive(Clone)]
pub struct TlsIdentity {
    held: Arc<Held>,
    incarnation: ClusterIncarnation,
}

/// Whose it is never changes; what proves it does.
struct Held {
    cluster: ClusterId,
    identity: Identity,
    current: RwLock<Arc<Proof>>,
}

/// What one handshake is made with.
pub(crate) struct Proof {
    cluster: ClusterId,
    own: CertificateFacts,
    /// Whom we trust: one certificate, or several in a rotation.
    authorities: Vec<CertificateFacts>,
    roots: Arc<RootCertStore>,
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").field("own", &self.held.identity).finish_non_exhaustive()
    }
}

impl TlsIdentity {
    /// Loads and cross-checks the three PEM files.
    ///
    /// # Errors
    /// When a file cannot be read, the key is readable by others, the pair does not match, the
    /// authority did not issue the certificate, or the certificate is not valid now; names the file.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<TlsIdentity, TlsError> {
        let ca_der = certificates("authority's certificate", ca)?;
        let chain = certificates("certificate", certificate)?;
        let key_pem = read_private_file(key)?;
        let key_der = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| TlsError::Pem {
            what: "key",
            path: key.to_owned(),
            reason: error.to_string(),
        })?;
        let mut roots = RootCertStore::empty();
        for der in &ca_der {
            roots.add(der.clone()).map_err(|error| TlsError::Pem {
                what: "authority's certificate",
                path: ca.to_owned(),
                reason: error.to_string(),
            })?;
        }
        let own = PeerCertificate::parse(&chain[0])
            .map_err(|source| TlsError::Identity { path: certificate.to_owned(), source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let leaf = chain[0].clone();
        let pair =
            CertifiedKey::from_der(chain, key_der, &provider).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    TlsError::Mismatch { key: key.to_owned(), certificate: certificate.to_owned() }
                }
                other => TlsError::Configure(other),
            })?;
        let roots = Arc::new(roots);
        let key = Arc::new(pair);
        let read = |path: &Path, der: &CertificateDer<'_>| {
            CertificateFacts::read(der)
                .map_err(|source| TlsError::Identity { path: path.to_owned(), source })
        };
        let facts = read(certificate, &leaf)?;
        let authorities =
            ca_der.iter().map(|der| read(ca, der)).collect::<Result<Vec<_>, TlsError>>()?;
        let cluster = own.cluster;
        let mut proof = Proof { cluster, own: facts, authorities, roots, key, provider };
        // The client's side of the check: persons' certificates are good for that side only.
        proof.client_verifier()?.verify_client_cert(&leaf, &[], UnixTime::now()).map_err(
            |source| TlsError::NotTrusted {
                certificate: certificate.to_owned(),
                ca: ca.to_owned(),
                source,
            },
        )?;
        proof.own.issued_by = proof.issuer(&ca_der, &leaf);
        let (identity, current) = (own.identity, RwLock::new(Arc::new(proof)));
        let held = Arc::new(Held { cluster, identity, current });
        Ok(TlsIdentity { held, incarnation: ClusterIncarnation::FOUNDED })
    }

    /// Takes what `newer` was loaded with into use, for every clone of this identity: connections that
    /// are made from now on prove themselves and judge their peers by it. The incarnation stays; no
    /// certificate names one.
    ///
    /// # Errors
    /// When it is of another bearer or another cluster; then nothing changes.
    pub fn replace(&self, newer: &TlsIdentity) -> Result<(), TlsError> {
        let (held, new) = (&self.held, &newer.held);
        if held.identity != new.identity || held.cluster != new.cluster {
            let words = |held: &Held| format!("{} of cluster {}", held.identity, held.cluster);
            return Err(TlsError::OtherBearer { found: words(new), wanted: words(held) });
        }
        let proof = newer.proof();
        *held.current.write().unwrap_or_else(PoisonError::into_inner) = proof;
        Ok(())
    }

    /// What is current now.
    pub(crate) fn proof(&self) -> Arc<Proof> {
        self.held.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cluster that our certificate and every acceptable peer's belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.held.cluster
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.held.identity
    }

    /// Our own certificate, as it is in use now.
    pub fn own(&self) -> CertificateFacts {
        self.proof().own.clone()
    }

    /// The authorities that we trust now; while one is rotated, the old and the new.
    pub fn authorities(&self) -> Vec<CertificateFacts> {
        self.proof().authorities.clone()
    }

    /// The same, speaking for an incarnation of the cluster; until then it is the founded one.
    #[must_use]
    pub fn of_incarnation(&self, incarnation: ClusterIncarnation) -> TlsIdentity {
        TlsIdentity { held: self.held.clone(), incarnation }
    }

    /// Which incarnation of the cluster its calls are for.
    pub fn incarnation(&self) -> ClusterIncarnation {
        self.incarnation
    }

    /// When our own certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.proof().own.not_after
    }

    /// When the first of the authority's certificates expires: in a rotation there are several, and which
    /// of them our own was issued by, or a peer's, only a peer's refusal would tell.
    pub fn authority_not_after(&self) -> Option<SystemTime> {
        self.proof().authorities.iter().map(|authority| authority.not_after).min()
    }

    /// What a peer's verified certificate says.
    pub(crate) fn read_peer(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<PeerCertificate, IdentityError> {
        let leaf = chain.and_then(|chain| chain.first()).map(AsRef::as_ref).unwrap_or_default();
        PeerCertificate::parse_of(leaf, self.cluster())
    }
}

impl Proof {
    /// Fingerprint of the authority that issued the leaf. Authorities of one cluster have one name, so
    /// that only the signature tells them apart.
    fn issuer(
        &self,
        authorities: &[CertificateDer<'static>],
        leaf: &CertificateDer<'static>,
    ) -> Option<String> {
        let leaf = ParsedCertificate::try_from(leaf).ok()?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let issued = |authority: &CertificateDer<'static>| {
            let mut alone = RootCertStore::empty();
            let now = UnixTime::now();
            alone.add(authority.clone()).is_ok()
                && verify_server_cert_signed_by_trust_anchor(&leaf, &alone, &[], now, algorithms)
                    .is_ok()
        };
        let place = authorities.iter().position(issued)?;
        Some(self.authorities[place].sha256.clone())
    }

    fn client_verifier(&self) -> Result<Arc<PersonOrNode>, TlsError> {
        let (roots, provider) = (self.roots.clone(), self.provider.clone());
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| TlsError::Configure(rustls::Error::General(error.to_string())))?;
        Ok(Arc::new(PersonOrNode { cluster: self.cluster, inner }))
    }

    /// For connections to the node `expect`, and only to it.
    pub(crate) fn client_config(&self, expect: &NodeName) -> Result<Arc<ClientConfig>, TlsError> {
        let verifier = Arc::new(MeantNode {
            cluster: self.cluster,
            expect: expect.clone(),
            roots: self.roots.clone(),
            provider: self.provider.clone(),
        });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Configure)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(self.resolver()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// For accepting anybody whom our authority vouches for.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Configure)?
            .with_client_cert_verifier(self.client_verifier()?)
            .with_cert_resolver(Arc::new(self.resolver()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn resolver(&self) -> SingleCertAndKey {
        SingleCertAndKey::from(self.key.clone())
    }
}

/// Every certificate in a PEM file; at least one.
fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |reason: String| TlsError::Pem { what, path: path.to_owned(), reason };
    let pem = read_file(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|source| error(source.to_string()))?;
    if found.is_empty() {
        return Err(error("it holds no certificate".to_owned()));
    }
    Ok(found)
}

/// A failed handshake in words: our own refusals as they are written, not in rustls' debug form.
pub(crate) fn explain(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
            other.0.to_string()
        }
        _ => error.to_string(),
    }
}

fn refuse(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// The server answered with another identity than the one that was meant.
#[derive(Debug, thiserror::Error)]
#[error("check the server's certificate: it is {found}, expected node {expected}")]
struct WrongServer {
    found: Identity,
    expected: NodeName,
}

/// The client's check of a server.
#[derive(Debug)]
struct MeantNode {
    cluster: ClusterId,
    expect: NodeName,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for MeantNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let peer = PeerCertificate::parse_of(end_entity, self.cluster).map_err(refuse)?;
        match peer.identity {
            Identity::Node(name) if name == self.expect => Ok(ServerCertVerified::assertion()),
            found => Err(refuse(WrongServer { found, expected: self.expect.clone() })),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The server's check of a client: webpki's, and an identity of our cluster.
#[derive(Debug)]
struct PersonOrNode {
    cluster: ClusterId,
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for PersonOrNode {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        PeerCertificate::parse_of(end_entity, self.cluster).map_err(refuse)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
