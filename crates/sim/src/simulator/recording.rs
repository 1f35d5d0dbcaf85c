//! Writes down what goes through one core's door, in the form of a node's decision recorder, so that a
//! seed and a failure in the field are looked at with the same tool. It changes nothing of a run.

use understudy_core::node::Event;
use understudy_trace::{Encoder, FORMAT, Header, PROGRAM};
use understudy_types::ProcessStart;

use super::world::World;

/// One node's trace, as one file; each start of its daemon has a header of its own.
#[derive(Debug)]
pub(crate) struct Recording {
    node: usize,
    seed: u64,
    encoder: Encoder,
    pub(crate) bytes: Vec<u8>,
}

impl World {
    /// Records this node from now on.
    pub(crate) fn record(&mut self, seed: u64, node: usize) {
        let (encoder, bytes) = (Encoder::default(), Vec::new());
        self.recording = Some(Recording { node, seed, encoder, bytes });
        self.recording_begins(node);
    }

    /// A daemon has begun with this core.
    pub(crate) fn recording_begins(&mut self, node: usize) {
        let (at, wall_unix_us) = (self.machines[node].clock(self.now), self.wall(node));
        let machine = &self.machines[node];
        let Some(recording) = self.recording.as_mut().filter(|found| found.node == node) else {
            return;
        };
        let header = Header {
            format: FORMAT,
            program: PROGRAM.to_owned(),
            node: machine.id,
            name: format!("seed {}, node {}", recording.seed, node + 1),
            process: ProcessStart(machine.process),
            events_before: 0,
            at,
            wall_unix_us,
        };
        recording.encoder.begin(header, &machine.core, &mut recording.bytes);
    }

    /// Gives the core an event.
    pub(crate) fn through_the_door(&mut self, node: usize, event: Event) {
        let now = self.machines[node].clock(self.now);
        let core = &mut self.machines[node].core;
        let Some(recording) = self.recording.as_mut().filter(|found| found.node == node) else {
            core.handle_event(now, event);
            return;
        };
        // Before it is handled: what ends the core is in the trace.
        recording.encoder.event(now, event.clone(), &mut recording.bytes);
        let before = core.decided().len();
        core.handle_event(now, event);
        let decided = core.decided().skip(before).cloned().collect();
        recording.encoder.actions(decided, &mut recording.bytes);
    }
}
