//! The one door that keeps incarnations of a cluster apart: a node's call is let in only when it is
//! meant for the incarnation that this node belongs to, whatever service it is for.
//!
//! Certificates stay good when a sole survivor is made a new incarnation (the authority's key is
//! elsewhere), so they cannot tell the two apart; the `:authority` of every call does. Persons are let
//! in always: they speak for no incarnation. It must not decide which incarnation is right, only that
//! two of them have no dealings; a greater number is reported to whoever put the door up.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::Either;
use http::{Request, Response, Uri};
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use understudy_types::{ClusterIncarnation, NodeName};

use crate::identity::Identity;
use crate::tls::Peer;

/// Names the answering node's incarnation in a refusal.
const HEADER: &str = "understudy-incarnation";

/// Called with who said so, and the incarnation that is newer than ours. Must not block.
type OnNewer = Arc<dyn Fn(&NodeName, ClusterIncarnation) + Send + Sync>;

/// To be put up with [`DoorLayer`].
#[derive(Clone)]
pub struct IncarnationDoor {
    own: ClusterIncarnation,
    open: &'static [&'static str],
    newer: OnNewer,
}

impl IncarnationDoor {
    /// Lets in what is meant for `own`, and whatever the paths in `open` name. `newer` hears of every
    /// caller that belongs to an incarnation with a greater number; it must not block.
    pub fn new(
        own: ClusterIncarnation,
        open: &'static [&'static str],
        newer: impl Fn(&NodeName, ClusterIncarnation) + Send + Sync + 'static,
    ) -> IncarnationDoor {
        IncarnationDoor { own, open, newer: Arc::new(newer) }
    }

    // A Status is what tonic's handlers must return; boxing it here would only be undone there.
    #[allow(clippy::result_large_err)]
    fn check(&self, uri: &Uri, peer: Option<&Peer>) -> Result<(), Status> {
        let Some(Peer { identity: Identity::Node(name), .. }) = peer else { return Ok(()) };
        if self.open.contains(&uri.path()) {
            return Ok(());
        }
        let meant = read_authority(uri.host().unwrap_or_default())
            .ok_or_else(|| Status::invalid_argument("the call's authority names no incarnation"))?;
        if meant == self.own {
            return Ok(());
        }
        if meant.number > self.own.number {
            (self.newer)(name, meant);
        }
        let mut status = Status::failed_precondition(refusal(name, meant, self.own));
        let own = MetadataValue::try_from(self.own.to_string()).expect("hexadecimal and a dash");
        status.metadata_mut().insert(HEADER, own);
        Err(status)
    }
}

fn refusal(caller: &NodeName, meant: ClusterIncarnation, own: ClusterIncarnation) -> String {
    let what =
        format!("node {caller} belongs to incarnation {meant} of the cluster, this node to {own}");
    match meant.number.cmp(&own.number) {
        std::cmp::Ordering::Less => format!(
            "{what}: the cluster was recovered from a sole survivor, and its old members take no part \
             any more; on {caller}, stop the daemon and run `understudy recover --rejoin`"
        ),
        std::cmp::Ordering::Greater => format!("{what}, which is out of date"),
        std::cmp::Ordering::Equal => format!(
            "{what}: two sides of the cluster were recovered apart from each other; keep one, and \
             run `understudy recover --sole-survivor` on it once more to make it the newer one"
        ),
    }
}

/// The incarnation, newer than `own`, by whose member a call was refused.
pub fn refused_by_newer(status: &Status, own: ClusterIncarnation) -> Option<ClusterIncarnation> {
    if status.code() != Code::FailedPrecondition {
        return None;
    }
    let found: ClusterIncarnation = status.metadata().get(HEADER)?.to_str().ok()?.parse().ok()?;
    (found.number > own.number).then_some(found)
}

/// `north`, or `north.1-67e5…` in an incarnation that was recovered.
pub(crate) fn authority(node: &NodeName, incarnation: ClusterIncarnation) -> String {
    if incarnation.is_founded() { node.to_string() } else { format!("{node}.{incarnation}") }
}

fn read_authority(host: &str) -> Option<ClusterIncarnation> {
    match host.split_once('.') {
        None if host.is_empty() => None,
        None => Some(ClusterIncarnation::FOUNDED),
        Some((_, incarnation)) => incarnation.parse().ok(),
    }
}

impl Door for IncarnationDoor {
    fn judge(&self, uri: &Uri, peer: Option<&Peer>) -> Result<(), Status> {
        self.check(uri, peer).inspect_err(|status| {
            tracing::debug!(reason = status.message(), "call of another incarnation refused");
        })
    }
}

/// Judges every call before any service sees it.
pub trait Door: Clone {
    /// Lets it in or not, by where it goes and who is proven to make it. Must not block.
    ///
    /// # Errors
    /// What the caller is answered.
    // A Status is what tonic's handlers must return; boxing it here would only be undone there.
    #[allow(clippy::result_large_err)]
    fn judge(&self, uri: &Uri, peer: Option<&Peer>) -> Result<(), Status>;
}

/// A door as a layer for `tonic::transport::Server`.
#[derive(Clone, Debug)]
pub struct DoorLayer<D>(pub D);

impl<D: Door, S> tower::Layer<S> for DoorLayer<D> {
    type Service = DoorService<D, S>;
    fn layer(&self, inner: S) -> DoorService<D, S> {
        DoorService { door: self.0.clone(), inner }
    }
}

/// What is behind a door.
#[derive(Clone, Debug)]
pub struct DoorService<D, S> {
    door: D,
    inner: S,
}

impl<D, S, B> tower::Service<Request<B>> for DoorService<D, S>
where
    D: Door,
    S: tower::Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.door.judge(request.uri(), request.extensions().get::<Peer>()) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use uuid::Uuid;

    use super::*;
    use crate::identity::Role;

    const PATH: &str = "/understudy.v1.Peer/Vote";

    fn recovered(id: u128) -> ClusterIncarnation {
        ClusterIncarnation::FOUNDED.next(Uuid::from_u128(id))
    }

    fn peer(identity: Identity) -> Peer {
        Peer {
            identity,
            address: "127.0.0.1:1".parse().unwrap(),
            not_after: SystemTime::UNIX_EPOCH,
        }
    }

    fn node() -> Peer {
        peer(Identity::Node("north".parse().unwrap()))
    }

    fn uri(meant: ClusterIncarnation, path: &str) -> Uri {
        format!("http://{}{path}", authority(&"south".parse().unwrap(), meant)).parse().unwrap()
    }

    #[test]
    fn only_the_own_incarnation_is_let_in() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let door = |own| {
            let heard = heard.clone();
            IncarnationDoor::new(own, &["/open"], move |_, newer| heard.lock().unwrap().push(newer))
        };
        let all = [ClusterIncarnation::FOUNDED, recovered(1), recovered(2)];
        for own in all {
            for meant in all {
                let judged = door(own).judge(&uri(meant, PATH), Some(&node()));
                assert_eq!(judged.is_ok(), own == meant, "{meant} at {own}");
                assert!(door(own).judge(&uri(meant, "/open"), Some(&node())).is_ok());
                if let Err(status) = judged {
                    let newer = refused_by_newer(&status, meant);
                    assert_eq!(newer, (own.number > meant.number).then_some(own));
                }
            }
        }
        assert_eq!(*heard.lock().unwrap(), [recovered(1), recovered(2)]);
    }

    #[test]
    fn persons_speak_for_no_incarnation() {
        let door = IncarnationDoor::new(recovered(1), &[], |_, _| unreachable!());
        let ada = Identity::Person { name: "ada".to_owned(), role: Role::Operator };
        assert!(door.judge(&uri(ClusterIncarnation::FOUNDED, PATH), Some(&peer(ada))).is_ok());
    }

    #[test]
    fn an_old_member_is_told_what_to_do() {
        let door = IncarnationDoor::new(recovered(1), &[], |_, _| unreachable!());
        let uri = uri(ClusterIncarnation::FOUNDED, PATH);
        let status = door.judge(&uri, Some(&node())).unwrap_err();
        assert!(status.message().contains("understudy recover --rejoin"), "{status}");
    }
}
