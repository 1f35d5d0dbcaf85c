//! One connection out of several that share a port: the one that carries WAL, and the consensus' own.
//!
//! They are told apart by what they carry: under load the WAL's is by far the busiest of those that the
//! passive keeps to the active. Rules by its ports then block it alone, or everything but it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Fault;
use super::links::packets_in;
use crate::arena::{Arena, SITES, address};
use crate::command::{output, said};
use crate::lab::GRPC_PORT;

static NEXT_TABLE: AtomicU32 = AtomicU32::new(1);
/// How long connections are compared.
const COMPARED_FOR: Duration = Duration::from_millis(1500);
/// The WAL's connection carries at least this much in that time, and thrice as much as any other.
const BYTES_MIN: u64 = 15_000;

/// Packets of chosen connections that are lost.
pub(crate) struct Flows {
    arena: Arena,
    /// Where rules are, and the table of each.
    tables: Vec<(&'static str, String)>,
    what: String,
    /// Proof needs packets of the spared connection too.
    spares: bool,
}

impl Flows {
    /// The WAL's connection is dead, and no new one from the passive comes through; those that the
    /// consensus has live.
    pub(crate) fn without_wal(
        arena: &Arena,
        active: &'static str,
        passive: &'static str,
    ) -> Result<Flows> {
        let port = wal_connection(arena, active, passive)?;
        let (here, there) = (address(active), address(passive));
        let at_active = format!(
            "add rule inet TABLE in ip saddr {there} tcp sport {port} tcp dport {GRPC_PORT} counter name lost drop; \
             add rule inet TABLE in ip saddr {there} tcp dport {GRPC_PORT} tcp flags & (syn|ack) == syn \
             counter name lost drop; "
        );
        let at_passive = format!(
            "add rule inet TABLE in ip saddr {here} tcp sport {GRPC_PORT} tcp dport {port} counter name lost drop; "
        );
        let what = format!("WAL's connection from port {port} of {passive}");
        Flows::begin(arena, what, false, &[(active, at_active), (passive, at_passive)])
    }

    /// Only the WAL's connection lives between the active and the others.
    pub(crate) fn wal_only(
        arena: &Arena,
        active: &'static str,
        passive: &'static str,
    ) -> Result<Flows> {
        let port = wal_connection(arena, active, passive)?;
        let mut rules = Vec::new();
        for at in SITES {
            let senders = SITES.into_iter().filter(|from| *from != at);
            let senders = senders.filter(|from| *from == active || at == active);
            let senders = senders.map(address).collect::<Vec<_>>().join(", ");
            let mut script = String::new();
            if at == active {
                script = format!(
                    "add rule inet TABLE in ip saddr {} tcp sport {port} tcp dport {GRPC_PORT} \
                     counter name passed accept; ",
                    address(passive)
                );
            } else if at == passive {
                script = format!(
                    "add rule inet TABLE in ip saddr {} tcp sport {GRPC_PORT} tcp dport {port} \
                     counter name passed accept; ",
                    address(active)
                );
            }
            script += &format!(
                "add rule inet TABLE in ip saddr {{ {senders} }} counter name lost drop; "
            );
            rules.push((at, script));
        }
        let what = format!("all but WAL's connection from port {port} of {passive}");
        Flows::begin(arena, what, true, &rules)
    }

    fn begin(
        arena: &Arena,
        what: String,
        spares: bool,
        rules: &[(&'static str, String)],
    ) -> Result<Flows> {
        let mut flows = Flows { arena: arena.clone(), tables: Vec::new(), what, spares };
        for (site, script) in rules {
            let table = format!("flows{}", NEXT_TABLE.fetch_add(1, Ordering::Relaxed));
            let script = format!(
                "add table inet TABLE; add counter inet TABLE lost; add counter inet TABLE passed; \
                 add chain inet TABLE in {{ type filter hook input priority -10; policy accept; }}; {script}"
            );
            let made = said(arena.at(site, "nft").arg(script.replace("TABLE", &table)));
            if let Err(error) = made {
                // Half of the rules would be nobody's to remove.
                flows.heal().ok();
                return Err(error);
            }
            flows.tables.push((site, table));
        }
        Ok(flows)
    }

    /// Packets that a named counter has seen at each place.
    fn counted(&self, counter: &str) -> Result<Vec<(&'static str, u64)>> {
        let count = |(site, table): &(&'static str, String)| {
            let mut list = self.arena.at(site, "nft");
            let text = output(list.args(["list", "counter", "inet", table, counter]))?;
            Ok((*site, packets_in(&text)?))
        };
        self.tables.iter().map(count).collect()
    }
}

impl Fault for Flows {
    fn proof(&mut self) -> Result<Option<String>> {
        let lost = self.counted("lost")?;
        if lost.is_empty() || lost.iter().all(|(_, packets)| *packets == 0) {
            return Ok(None);
        }
        let words: Vec<_> = lost.iter().map(|(at, packets)| format!("{packets} at {at}")).collect();
        let mut said = format!("{}: lost {}", self.what, words.join(", "));
        if self.spares {
            let passed: u64 = self.counted("passed")?.iter().map(|(_, packets)| packets).sum();
            if passed == 0 {
                return Ok(None);
            }
            said += &format!("; {passed} packets of WAL's connection passed");
        }
        Ok(Some(said))
    }

    fn heal(&mut self) -> Result<()> {
        for (site, table) in std::mem::take(&mut self.tables) {
            said(self.arena.at(site, "nft").args(["delete", "table", "inet", &table]))?;
        }
        Ok(())
    }
}

/// The passive's port of the connection that carries WAL.
fn wal_connection(arena: &Arena, active: &str, passive: &str) -> Result<u16> {
    let before = received(arena, active, passive)?;
    std::thread::sleep(COMPARED_FOR);
    let after = received(arena, active, passive)?;
    let mut grown: Vec<(u64, u16)> = after
        .into_iter()
        .filter_map(|(port, bytes)| Some((bytes.checked_sub(*before.get(&port)?)?, port)))
        .collect();
    grown.sort_unstable();
    let (most, port) = grown.pop().context("find a connection from the passive to the active")?;
    let next = grown.pop().map_or(0, |(bytes, _)| bytes);
    ensure!(
        most >= BYTES_MIN && most >= next * 3,
        "no connection is clearly the WAL's: {most} bytes on one, {next} on another"
    );
    Ok(port)
}

/// What each of the passive's connections to the active has received, by its own port.
fn received(arena: &Arena, active: &str, passive: &str) -> Result<BTreeMap<u16, u64>> {
    let mut ss = arena.at(passive, "ss");
    ss.args(["-tniHO", "state", "established", "dst"])
        .arg(format!("{}:{GRPC_PORT}", address(active)));
    Ok(output(&mut ss)?.lines().filter_map(connection).collect())
}

/// One line of `ss -tniHO state established`: the own port and the bytes received.
fn connection(line: &str) -> Option<(u16, u64)> {
    let own = line.split_whitespace().nth(2)?;
    let port = own.rsplit_once(':')?.1.parse().ok()?;
    let bytes = line.split("bytes_received:").nth(1).unwrap_or("0");
    let bytes = bytes.split_whitespace().next()?.parse().ok()?;
    Some((port, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_read_as_ss_prints_it() {
        let line = "0      0      10.213.0.12:41234 10.213.0.11:7400  cubic wscale:7,7 rto:204 \
                    bytes_sent:1200 bytes_acked:1201 bytes_received:98765 segs_out:9";
        assert_eq!(connection(line), Some((41234, 98765)));
        assert_eq!(connection("0 0 10.213.0.12:41234 10.213.0.11:7400 cubic"), Some((41234, 0)));
        assert_eq!(connection(""), None);
    }
}
