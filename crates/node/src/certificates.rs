//! Takes new certificate files into use while the daemon runs: when it is told to (SIGHUP), and when it
//! sees that they changed and then stay as they are for one more look, so that a pair of which only one
//! half is written is not judged yet.
//!
//! New files are checked as at the start; what does not do is refused, and what is in use goes on. No
//! connection is closed by a change: new ones are made with what is new.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use understudy_transport::{CertificateFacts, TlsIdentity};
use understudy_types::Epoch;

use crate::clock::wall_unix_us;
use crate::config::NodeConfig;
use crate::daemon::{RunError, load_identity};
use crate::events::{Happening, Kind, Severity};
use crate::hands::chain;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What tells one writing of a file from another.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// The three files as they lie there; `None` for one that cannot be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamps([Option<Stamp>; 3]);

impl Stamps {
    /// To be taken before the files are read: a change in between is then seen at the next look.
    pub(crate) fn take(config: &NodeConfig) -> Stamps {
        let tls = &config.tls;
        Stamps([&tls.ca, &tls.certificate, &tls.key].map(|path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            let written = (found.mtime(), found.mtime_nsec());
            // A mode or an owner that was mended changes this alone.
            let changed = (found.ctime(), found.ctime_nsec());
            Some((found.dev(), found.ino(), found.size(), written, changed))
        }))
    }
}

/// Which looks lead to a judgement: the files are others than were judged last, and the same as at the
/// look before.
#[derive(Debug)]
struct Looks {
    judged: Stamps,
    before: Stamps,
}

impl Looks {
    fn new(judged: Stamps) -> Looks {
        Looks { before: judged.clone(), judged }
    }

    /// Whether the files are to be judged at this look.
    fn look(&mut self, now: Stamps) -> bool {
        let settled = now == self.before;
        self.before = now;
        settled && self.before != self.judged
    }

    /// They were judged as they are now.
    fn judged(&mut self, now: Stamps) {
        self.before = now.clone();
        self.judged = now;
    }
}

/// Keeps a node's identity as its files say.
pub(crate) struct Certificates {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) identity: TlsIdentity,
    /// The files of which `identity` was loaded, or older ones.
    pub(crate) loaded: Stamps,
    pub(crate) news: mpsc::Sender<Happening>,
}

impl Certificates {
    /// Goes on until `shutdown`.
    pub(crate) async fn follow(self, mut hangup: Signal, shutdown: CancellationToken) {
        self.record(false);
        let mut looks = Looks::new(self.loaded.clone());
        loop {
            let asked = tokio::select! {
                () = shutdown.cancelled() => return,
                Some(()) = hangup.recv() => true,
                () = tokio::time::sleep(LOOK_INTERVAL) => false,
            };
            let now = Stamps::take(&self.config);
            if asked || looks.look(now.clone()) {
                looks.judged(now);
                self.judge(asked);
            }
        }
    }

    /// Reads the files, and takes them into use if they do.
    fn judge(&self, asked: bool) {
        let before = (self.identity.own(), self.identity.authorities());
        match self.load() {
            Ok(()) => {
                self.record(false);
                let own = self.identity.own();
                let authorities = self.identity.authorities();
                if before != (own.clone(), authorities.clone()) {
                    let words = renewed(&own, &authorities);
                    let change = (Some(before.0.sha256), Some(own.sha256));
                    self.tell((Kind::CertificateRenewed, Severity::Info), change, words);
                } else if asked {
                    tracing::info!("the certificate files are the ones that are in use");
                }
            }
            Err(error) => {
                self.record(true);
                let words = format!(
                    "the new certificate files are refused, and certificate {} stays in use: {}",
                    short(&before.0.sha256),
                    chain(&error)
                );
                tracing::error!(error = chain(&error), "the new certificate files are refused");
                let stays = Some(before.0.sha256);
                self.tell((Kind::CertificateRefused, Severity::Warning), (stays, None), words);
            }
        }
    }

    fn load(&self) -> Result<(), RunError> {
        let newer = load_identity(&self.config)?;
        self.identity.replace(&newer).map_err(|source| RunError::Part {
            what: "take the node's certificate into use",
            source: source.into(),
        })
    }

    fn record(&self, refused: bool) {
        crate::metrics::set_certificates(
            self.identity.not_after(),
            self.identity.authority_not_after(),
        );
        crate::metrics::set_certificate_files_refused(refused);
    }

    fn tell(
        &self,
        (kind, severity): (Kind, Severity),
        (from, to): (Option<String>, Option<String>),
        words: String,
    ) {
        let (subject, at_unix_us) = (self.config.name.to_string(), wall_unix_us());
        let epoch = Epoch::NONE;
        let news = Happening { kind, severity, subject, words, epoch, from, to, at_unix_us };
        // At the bound it is in the log alone.
        if let Err(error) = self.news.try_send(news) {
            tracing::warn!(%error, "an event is left out");
        }
    }
}

fn renewed(own: &CertificateFacts, authorities: &[CertificateFacts]) -> String {
    let issuer = own.issued_by.as_deref().map_or("nobody known", short);
    let trusted: Vec<&str> = authorities.iter().map(|known| short(&known.sha256)).collect();
    format!(
        "certificate {} is in use, issued by {issuer}, valid until {}; trusted: {}",
        short(&own.sha256),
        day(own.not_after),
        trusted.join(", ")
    )
}

/// As much of a fingerprint as a person compares.
fn short(sha256: &str) -> &str {
    sha256.get(..16).unwrap_or(sha256)
}

fn day(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "-".to_owned(), |at| format!("{at:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_judged_once_and_only_when_they_stayed_as_they_are_for_one_more_look() {
        let at = |key: Option<i64>| {
            let stamp = |written| (1, 2, 3, (written, 0), (written, 0));
            Stamps([Some(stamp(1)), Some(stamp(1)), key.map(stamp)])
        };
        let mut looks = Looks::new(at(Some(1)));
        assert!(!looks.look(at(Some(1))), "nothing changed");
        assert!(!looks.look(at(None)), "being written");
        assert!(!looks.look(at(Some(2))), "still being written");
        assert!(looks.look(at(Some(2))), "it stayed");
        looks.judged(at(Some(2)));
        assert!(!looks.look(at(Some(2))), "judged already");
        assert!(!looks.look(at(Some(3))));
        assert!(!looks.look(at(Some(2))), "it is back as it was");
        assert!(!looks.look(at(Some(2))));
    }
}
