//! The candidate's part where k of n sufficed for a commit: have enough of the others seal their journals,
//! and fetch what the furthest of them has beyond the own one.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use understudy_core::node::{Completion, TaskFailure};
use understudy_shipping::tail::{self, PeerSeal};
use understudy_types::{Epoch, Lsn, NodeId, SealedEnd};

use super::{Hands, blocking, chain, transient, transient_words};

impl Hands {
    pub(super) async fn collect_seals(
        &self,
        epoch: Epoch,
        members: &[(NodeId, Lsn)],
        needed: usize,
    ) -> Result<Completion, TaskFailure> {
        let own = self.own_seal(epoch).await?;
        let own_lsn = own.map_or(Lsn::ZERO, |own| own.durable_lsn);
        // The last record that is here is compared, so the other has to have it from its beginning.
        let journal = self.journal().clone();
        let tail = blocking(move || journal.tail()).await.map_err(transient)?;
        let from_lsn = tail.map_or(own_lsn, |tail| tail.tail_lsn);
        let ask =
            |(member, known): &(NodeId, Lsn)| self.ask_for_seal(epoch, *member, *known, from_lsn);
        let mut asked: FuturesUnordered<_> = members.iter().map(ask).collect();
        let (mut sealed, mut failed) = (Vec::new(), Vec::new());
        while let Some((member, answer)) = asked.next().await {
            match answer {
                Ok(found) => sealed.push((member, found)),
                Err(words) => failed.push(words),
            }
            if sealed.len() >= needed {
                break;
            }
        }
        drop(asked);
        if sealed.len() < needed {
            return Err(transient_words(&format!(
                "{needed} of those that commits waited for have to be sealed, {} are: {}",
                sealed.len(),
                failed.join("; ")
            )));
        }
        let furthest = sealed
            .into_iter()
            .filter_map(|(member, found)| found.map(|found| (member, found)))
            .max_by_key(|(_, found)| (found.timeline, found.durable_lsn));
        let Some((member, found)) = furthest else {
            return Ok(Completion::Sealed(own));
        };
        if own.is_some_and(|own| own.timeline >= found.timeline) && own_lsn >= found.durable_lsn {
            tracing::info!(%epoch, end = %own_lsn, "no other sealed journal has more");
            return Ok(Completion::Sealed(own));
        }
        self.fetch_tail(epoch, member, found, own_lsn).await
    }

    /// The own journal, sealed for this epoch; sealing it again changes nothing.
    async fn own_seal(&self, epoch: Epoch) -> Result<Option<SealedEnd>, TaskFailure> {
        self.follower().unfollow().await;
        let journal = self.journal().clone();
        blocking(move || journal.seal(epoch)).await.map_err(transient)
    }

    /// `known_lsn` is what it is known to have had: with less it has lost WAL that it acknowledged.
    /// Beginning after `from_lsn`, the last record here, it does not have what lies between.
    async fn ask_for_seal(
        &self,
        epoch: Epoch,
        member: NodeId,
        known_lsn: Lsn,
        from_lsn: Lsn,
    ) -> (NodeId, Result<Option<PeerSeal>, String>) {
        let name = self.called(member);
        let Some(dialer) = (self.options().bulk)(member) else {
            return (member, Err(format!("{name} is not a member that can be reached")));
        };
        let answer = match tail::seal_at(dialer.channel(), epoch).await {
            Ok(found) => {
                let end_lsn = found.map_or(Lsn::ZERO, |found| found.durable_lsn);
                let begin_lsn = found.map_or(Lsn::ZERO, |found| found.begin_lsn);
                if end_lsn < known_lsn {
                    Err(format!("{name} has {end_lsn} and is known to have had {known_lsn}"))
                } else if begin_lsn > from_lsn {
                    Err(format!(
                        "{name} has nothing before {begin_lsn}, and the last record here begins at {from_lsn}"
                    ))
                } else {
                    Ok(found)
                }
            }
            Err(status) => Err(format!("{name}: {}", status.message())),
        };
        (member, answer)
    }

    fn called(&self, node: NodeId) -> String {
        (self.options().names)(node).map_or_else(|| format!("node {node}"), |name| name.to_string())
    }

    async fn fetch_tail(
        &self,
        epoch: Epoch,
        member: NodeId,
        found: PeerSeal,
        own_lsn: Lsn,
    ) -> Result<Completion, TaskFailure> {
        let name = self.called(member);
        let lacks_bytes = found.durable_lsn.bytes_since(own_lsn);
        tracing::info!(from = %name, lacks_bytes, to = %found.durable_lsn, "fetching the missing tail");
        let dialer = (self.options().bulk)(member)
            .ok_or_else(|| transient_words("a member that answered cannot be reached"))?;
        let fetched = tail::fetch(dialer.channel(), self.journal(), epoch, found).await;
        let sealed = fetched.map_err(|error| {
            transient_words(&format!(
                "fetch {lacks_bytes} bytes of WAL that {name} has: {}",
                chain(&error)
            ))
        })?;
        Ok(Completion::Sealed(sealed))
    }
}
