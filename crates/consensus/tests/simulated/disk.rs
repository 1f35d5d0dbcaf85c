//! A disk that keeps what was synced, and loses any part of the rest with the power.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use redb::{Database, StorageBackend};
use understudy_consensus::Device;

/// Sectors are written whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Default)]
struct State {
    /// What survives the power.
    durable: Vec<u8>,
    /// What is read.
    cached: Vec<u8>,
    unsynced: Vec<Unsynced>,
    snapshot: Option<Vec<u8>>,
    /// Grows with every loss of power: who opened the disk before has no disk any more.
    life: u32,
    /// Writes and syncs until one fails, and all after it in this life.
    fails_after: Option<u32>,
    write_takes: Duration,
    /// A disk that lies: of so many syncs only the last one reaches the platter, and what comes after
    /// it is gone with the power.
    true_sync_every: Option<u32>,
    syncs: u32,
    torn: u32,
}

/// One node's disk; it outlives its node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The power goes: any part of what was not synced may be there afterwards.
    pub(crate) fn lose_power(&self, rng: &mut SmallRng) {
        let state = &mut *self.state();
        for change in std::mem::take(&mut state.unsynced) {
            match change {
                _ if state.true_sync_every.is_some() => {}
                Unsynced::Write(at, data) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if rng.random_bool(0.5) {
                            put(&mut state.durable, at + number * SECTOR, sector);
                        } else {
                            state.torn += 1;
                        }
                    }
                }
                Unsynced::Length(length) => {
                    if rng.random_bool(0.5) {
                        state.durable.resize(length, 0);
                    }
                }
            }
        }
        state.cached.clone_from(&state.durable);
        state.life += 1;
        state.fails_after = None;
    }

    /// From now on so many writes and syncs succeed in this life, and no more.
    pub(crate) fn break_after(&self, operations: u32) {
        self.state().fails_after = Some(operations);
    }

    pub(crate) fn set_write_takes(&self, time: Duration) {
        self.state().write_takes = time;
    }

    /// From now on it says that it has synced when it has not: a rollback with each loss of power.
    pub(crate) fn lie(&self) {
        self.state().true_sync_every = Some(50);
    }

    /// Sectors that were lost with the power so far.
    pub(crate) fn torn(&self) -> u32 {
        self.state().torn
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Device for Disk {
    fn name(&self) -> String {
        "a simulated disk".to_owned()
    }

    fn log(&self) -> io::Result<Database> {
        let life = self.state().life;
        let opened = Opened { disk: self.clone(), life };
        Database::builder().create_with_backend(opened).map_err(io::Error::other)
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn read_snapshot(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state().snapshot.clone())
    }

    fn replace_snapshot(&self, bytes: &[u8]) -> io::Result<()> {
        self.state().snapshot = Some(bytes.to_vec());
        Ok(())
    }

    fn simulated_write(&self) -> Option<Duration> {
        Some(self.state().write_takes)
    }
}

/// The disk as one life of its node has it.
#[derive(Debug)]
struct Opened {
    disk: Disk,
    life: u32,
}

impl Opened {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life { Ok(state) } else { Err(io::Error::other("no power")) }
    }

    /// For what changes something.
    fn changing(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state()?;
        match &mut state.fails_after {
            Some(0) => return Err(io::Error::other("the disk is broken")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let bytes = state.cached.get(at(offset)..at(offset) + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.changing()?;
        state.cached.resize(at(len), 0);
        state.unsynced.push(Unsynced::Length(at(len)));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.changing()?;
        state.syncs += 1;
        if state.true_sync_every.is_none_or(|every| state.syncs.is_multiple_of(every)) {
            state.durable.clone_from(&state.cached);
            state.unsynced.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.changing()?;
        put(&mut state.cached, at(offset), data);
        state.unsynced.push(Unsynced::Write(at(offset), data.to_vec()));
        Ok(())
    }
}
