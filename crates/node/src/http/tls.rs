//! The HTTP door's own certificate: ordinary TLS, for load balancers and browsers that know nothing of
//! the cluster's identities. Nobody is let in or kept out by it; it only hides what is read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy_transport::read_private_file;

use crate::config::HttpTls;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HttpTlsError {
    /// A file is missing, or others can read the key.
    #[error("load the HTTP door's key")]
    Key(#[source] understudy_transport::FileError),
    /// A file has no PEM of that kind.
    #[error("read {path} as PEM")]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The two do not belong together.
    #[error("use {certificate} for the HTTP door")]
    Unusable {
        /// Which.
        certificate: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

/// What new connections are taken with.
pub(super) type TlsNow = watch::Receiver<Arc<ServerConfig>>;

/// Loads the files.
///
/// # Errors
/// When they are missing, unreadable or do not fit; says which.
pub(super) fn load(files: &HttpTls) -> Result<Arc<ServerConfig>, HttpTlsError> {
    let path = &files.certificate;
    let pem = |source| HttpTlsError::Pem { path: path.clone(), source };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(pem)?;
    let key = read_private_file(&files.key).map_err(HttpTlsError::Key)?;
    let pem = |source| HttpTlsError::Pem { path: files.key.clone(), source };
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(pem)?;
    let unusable = |source| HttpTlsError::Unusable { certificate: path.clone(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Loads the files again whenever one of them has changed; what cannot be used leaves the old ones in
/// place, with a warning.
pub(super) async fn follow(
    files: HttpTls,
    current: watch::Sender<Arc<ServerConfig>>,
    shutdown: CancellationToken,
) {
    let mut seen = modified(&files);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let now = modified(&files);
        if now == seen {
            continue;
        }
        match load(&files) {
            Ok(config) => {
                // What cannot be loaded is tried again: a hook may still be at it.
                seen = now;
                tracing::info!(certificate = %files.certificate.display(), "HTTP certificate renewed");
                current.send_replace(config);
            }
            Err(error) => tracing::warn!(
                error = crate::hands::chain(&error),
                "the new HTTP certificate cannot be used, the old one stays"
            ),
        }
    }
}

fn modified(files: &HttpTls) -> [Option<SystemTime>; 2] {
    [&files.certificate, &files.key]
        .map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok())
}
