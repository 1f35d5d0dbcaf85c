//! Links that lose, refuse or slow what goes over them: nftables in the receiver's namespace (one rule is
//! one direction), traffic classes at the sender's.
//!
//! The proof is the kernel's own counter of packets that a rule hit.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use super::Fault;
use crate::arena::{Arena, SITES, address, clients_address};
use crate::command::{output, said};

static NEXT_TABLE: AtomicU32 = AtomicU32::new(1);

/// What happens to a packet.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is lost.
    Lost,
    /// This many of a hundred are lost.
    LostPercent(u32),
    /// It is lost if it has more bytes than this.
    LostAbove(u32),
    /// Its sender's TCP connection is reset.
    Reset,
}

impl Fate {
    fn rule(self, from: &str) -> String {
        let source = format!("ip saddr {from}");
        match self {
            Fate::Lost => format!("{source} counter drop"),
            Fate::LostPercent(percent) => {
                format!("{source} numgen random mod 100 < {percent} counter drop")
            }
            Fate::LostAbove(bytes) => format!("{source} meta length > {bytes} counter drop"),
            Fate::Reset => format!("{source} meta l4proto tcp counter reject with tcp reset"),
        }
    }
}

/// Rules at one receiver, in a table of their own.
struct Rules {
    at: &'static str,
    table: String,
    in_place: bool,
}

/// Directed links with the same fate.
pub(crate) struct Links {
    arena: Arena,
    rules: Vec<Rules>,
    fate: Fate,
    hit: u64,
}

impl Links {
    /// Both directions between two sites are dead.
    pub(crate) fn cut(arena: &Arena, a: &'static str, b: &'static str) -> Result<Links> {
        Links::begin(arena, Fate::Lost, &[(a, b), (b, a)])
    }

    /// Nothing from `from` reaches `to`; the other direction lives.
    pub(crate) fn cut_one_way(
        arena: &Arena,
        from: &'static str,
        to: &'static str,
    ) -> Result<Links> {
        Links::begin(arena, Fate::Lost, &[(from, to)])
    }

    /// A site hears none of the others, nor they it. Clients still reach it: whoever is beside a cut-off
    /// site goes on trying there.
    pub(crate) fn isolate(arena: &Arena, site: &'static str) -> Result<Links> {
        Links::begin(arena, Fate::Lost, &Links::around(site))
    }

    /// Clients do not reach a site, and it does not answer them; the cluster's own paths live.
    pub(crate) fn hide_from_clients(arena: &Arena, site: &'static str) -> Result<Links> {
        Links::begin(arena, Fate::Lost, &[("hub", site)])
    }

    /// Every packet between sites is lost with this probability.
    pub(crate) fn lossy(arena: &Arena, percent: u32) -> Result<Links> {
        Links::begin(arena, Fate::LostPercent(percent), &Links::all())
    }

    /// Packets between two sites that are larger than this are lost, and nobody is told.
    pub(crate) fn lose_large(
        arena: &Arena,
        a: &'static str,
        b: &'static str,
        bytes: u32,
    ) -> Result<Links> {
        Links::begin(arena, Fate::LostAbove(bytes), &[(a, b), (b, a)])
    }

    /// Every TCP connection between sites is reset as soon as it speaks.
    pub(crate) fn reset_all(arena: &Arena) -> Result<Links> {
        Links::begin(arena, Fate::Reset, &Links::all())
    }

    /// The same between two sites only.
    pub(crate) fn reset(arena: &Arena, a: &'static str, b: &'static str) -> Result<Links> {
        Links::begin(arena, Fate::Reset, &[(a, b), (b, a)])
    }

    fn around(site: &'static str) -> Vec<(&'static str, &'static str)> {
        let others = SITES.into_iter().filter(|other| *other != site);
        others.flat_map(|other| [(site, other), (other, site)]).collect()
    }

    /// Every directed link between sites.
    fn all() -> Vec<(&'static str, &'static str)> {
        let from = |from| SITES.into_iter().filter(move |to| *to != from).map(move |to| (from, to));
        SITES.into_iter().flat_map(from).collect()
    }

    fn begin(arena: &Arena, fate: Fate, links: &[(&'static str, &'static str)]) -> Result<Links> {
        let mut begun = Links { arena: arena.clone(), rules: Vec::new(), fate, hit: 0 };
        for site in SITES {
            let senders: Vec<_> =
                links.iter().filter(|(_, to)| *to == site).map(|(from, _)| *from).collect();
            if senders.is_empty() {
                continue;
            }
            let table = format!("fault{}", NEXT_TABLE.fetch_add(1, Ordering::Relaxed));
            let mut script = format!(
                "add table inet {table}; add chain inet {table} in \
                 {{ type filter hook input priority -10; policy accept; }}; "
            );
            for from in senders {
                let source = if from == "hub" { clients_address() } else { address(from) };
                script += &format!("add rule inet {table} in {}; ", fate.rule(&source));
            }
            said(arena.at(site, "nft").arg(script))?;
            begun.rules.push(Rules { at: site, table, in_place: true });
        }
        Ok(begun)
    }

    /// Packets that each receiver's rules have hit.
    fn hits(&self) -> Result<Vec<(&'static str, u64)>> {
        let hit = |rules: &Rules| Ok((rules.at, counted(&self.arena, rules.at, &rules.table)?));
        self.rules.iter().filter(|rules| rules.in_place).map(hit).collect()
    }

    /// How many packets were hit until it was healed, or until now.
    pub(crate) fn packets_hit(&self) -> Result<u64> {
        Ok(self.hit + self.hits()?.iter().map(|(_, packets)| packets).sum::<u64>())
    }
}

impl Fault for Links {
    fn proof(&mut self) -> Result<Option<String>> {
        let hits = self.hits()?;
        // Large packets go one way only: WAL there, small acknowledgements back.
        let one_way = matches!(self.fate, Fate::LostAbove(_));
        let silent = hits.iter().filter(|(_, packets)| *packets == 0).count();
        if silent == hits.len() || (silent > 0 && !one_way) {
            return Ok(None);
        }
        let words: Vec<_> = hits.iter().map(|(at, packets)| format!("{packets} at {at}")).collect();
        let what = match self.fate {
            Fate::Lost | Fate::LostPercent(_) => "packets lost".to_owned(),
            Fate::LostAbove(bytes) => format!("packets above {bytes} bytes lost"),
            Fate::Reset => "packets answered with a reset".to_owned(),
        };
        Ok(Some(format!("{what}: {}", words.join(", "))))
    }

    fn heal(&mut self) -> Result<()> {
        self.hit = self.packets_hit()?;
        for rules in self.rules.iter_mut().filter(|rules| rules.in_place) {
            said(self.arena.at(rules.at, "nft").args(["delete", "table", "inet", &rules.table]))?;
            rules.in_place = false;
        }
        Ok(())
    }
}

/// A site whose link to the other sites is away, made and ended by one command each, so that it lasts as
/// long as it is meant to also where processors are scarce. Clients still reach it.
pub(crate) struct Unplugged {
    arena: Arena,
    site: &'static str,
    table: String,
    in_place: bool,
    /// What was lost until it was healed.
    pub(crate) packets: u64,
}

impl Unplugged {
    /// Unplugs a site.
    pub(crate) fn begin(arena: &Arena, site: &'static str) -> Result<Unplugged> {
        let others = SITES.into_iter().filter(|other| *other != site).map(address);
        let others = others.collect::<Vec<_>>().join(", ");
        let table = format!("fault{}", NEXT_TABLE.fetch_add(1, Ordering::Relaxed));
        // A counter with a name outlives the rules that count by it.
        let mut script = format!("add table inet {table}; add counter inet {table} lost; ");
        for (hook, side) in [("input", "saddr"), ("output", "daddr")] {
            script += &format!(
                "add chain inet {table} {hook} \
                 {{ type filter hook {hook} priority -10; policy accept; }}; \
                 add rule inet {table} {hook} ip {side} {{ {others} }} counter name lost drop; "
            );
        }
        said(arena.at(site, "nft").arg(script))?;
        Ok(Unplugged { arena: arena.clone(), site, table, in_place: true, packets: 0 })
    }

    fn counted(&self) -> Result<u64> {
        let mut list = self.arena.at(self.site, "nft");
        let text = output(list.args(["list", "counters", "table", "inet", &self.table]))?;
        packets_in(&text)
    }
}

impl Fault for Unplugged {
    fn proof(&mut self) -> Result<Option<String>> {
        if !self.in_place {
            return Ok(None);
        }
        let packets = self.counted()?;
        Ok((packets > 0).then(|| format!("packets lost: {packets} at {}", self.site)))
    }

    fn heal(&mut self) -> Result<()> {
        if std::mem::take(&mut self.in_place) {
            let table = format!("inet {}", self.table);
            let flush = format!("flush chain {table} input; flush chain {table} output");
            said(self.arena.at(self.site, "nft").arg(flush))?;
            self.packets = self.counted()?;
            said(self.arena.at(self.site, "nft").arg(format!("delete table {table}")))?;
        }
        Ok(())
    }
}

/// Packets that the counters of a table at a site have seen.
fn counted(arena: &Arena, site: &str, table: &str) -> Result<u64> {
    packets_in(&output(arena.at(site, "nft").args(["list", "table", "inet", table]))?)
}

/// Packets that the counters in a list of nft's have seen.
///
/// # Errors
/// When there is no counter in it, or one that cannot be read: nothing seen is something else.
pub(super) fn packets_in(list: &str) -> Result<u64> {
    let counts: Vec<&str> =
        list.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
    ensure!(!counts.is_empty(), "find the packets in nft's list: {list}");
    let count = |text: &str| -> Result<u64> {
        text.parse().with_context(|| format!("read the packets in nft's list: {text:?}"))
    };
    counts.into_iter().map(count).sum()
}

/// A site sends no faster than this to another one; its way to everybody else is free.
pub(crate) struct Narrow {
    arena: Arena,
    from: &'static str,
    to: &'static str,
    in_place: bool,
}

impl Narrow {
    /// `rate` as tc spells it, such as `256kbit`. What has to wait is kept for about half a second's worth
    /// at that rate, as a small router would, and lost beyond it.
    pub(crate) fn begin(
        arena: &Arena,
        from: &'static str,
        to: &'static str,
        rate: &str,
    ) -> Result<Narrow> {
        let mut narrow = Narrow { arena: arena.clone(), from, to, in_place: true };
        let target = format!("{}/32", address(to));
        let steps = [
            "qdisc add dev eth0 root handle 1: htb default 10",
            "class add dev eth0 parent 1: classid 1:10 htb rate 1gbit quantum 60000",
            &format!("class add dev eth0 parent 1: classid 1:20 htb rate {rate}"),
            "qdisc add dev eth0 parent 1:20 bfifo limit 16kb",
            &format!(
                "filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dst {target} flowid 1:20"
            ),
        ];
        for step in steps {
            if let Err(error) = said(arena.at(from, "tc").args(step.split(' '))) {
                // Half a shape would be nobody's to remove.
                narrow.heal().ok();
                return Err(error);
            }
        }
        Ok(narrow)
    }
}

impl Fault for Narrow {
    fn proof(&mut self) -> Result<Option<String>> {
        if !self.in_place {
            return Ok(None);
        }
        let text =
            output(self.arena.at(self.from, "tc").args("-s class show dev eth0".split(' ')))?;
        let own =
            text.split("class htb 1:20").nth(1).context("find the narrow class in tc's list")?;
        let rest = own.split("overlimits ").nth(1).context("read tc's overlimits")?;
        let held: u64 = rest.split(' ').next().unwrap_or_default().parse().unwrap_or(0);
        let words = format!("what {} sent to {} had to wait {held} times", self.from, self.to);
        Ok((held > 0).then_some(words))
    }

    fn heal(&mut self) -> Result<()> {
        if std::mem::take(&mut self.in_place) {
            said(self.arena.at(self.from, "tc").args(["qdisc", "del", "dev", "eth0", "root"]))?;
        }
        Ok(())
    }
}
