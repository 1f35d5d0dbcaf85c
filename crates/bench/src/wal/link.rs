//! The link between the two sides: loopback as it is, or a line with a delay and a rate.
//!
//! Every contender's connection from the passive to the active goes over it, PostgreSQL's own as well as
//! Understudy's. It carries bytes, not packets, so what is compared is what the programs make of a delay
//! and a rate, not what TCP does with losses.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::runtime::Runtime;
use understudy_line::{Habit, Line};

/// How the two sides are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Link {
    /// Each way.
    pub(super) delay_ms: u32,
    /// Million bits a second each way; as fast as it goes without.
    pub(super) mbit: Option<u32>,
}

impl Link {
    fn habit(self) -> Option<Habit> {
        (self != Link::default()).then(|| Habit {
            delay: Duration::from_millis(self.delay_ms.into()),
            bytes_per_second: self.mbit.map(|mbit| u64::from(mbit) * 1_000_000 / 8),
            ..Habit::default()
        })
    }

    /// For the name of a case; nothing for loopback.
    pub(super) fn words(self) -> String {
        let delay = (self.delay_ms > 0).then(|| format!(", {} ms each way", self.delay_ms));
        let rate = self.mbit.map(|mbit| format!(", {mbit} Mbit/s"));
        delay.unwrap_or_default() + &rate.unwrap_or_default()
    }
}

/// What carries the lines.
pub(super) struct Carrier(Runtime);

impl Carrier {
    pub(super) fn new() -> Result<Carrier> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start what carries the link")?;
        Ok(Carrier(runtime))
    }

    /// The way to a port of the active, and the line that it goes over, which must be kept as long.
    pub(super) fn way_to(&self, port: u16, link: Link) -> Result<(u16, Option<Line>)> {
        let Some(habit) = link.habit() else { return Ok((port, None)) };
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let line = self.0.block_on(Line::to(target)).context("make a line")?;
        line.set(habit);
        Ok((line.address.port(), Some(line)))
    }
}
