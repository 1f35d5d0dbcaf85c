//! Faults that are done through PostgreSQL or the file system and have no kernel object of their own.

use anyhow::Result;

use super::Fault;

type Proof<'a> = Box<dyn FnMut() -> Result<Option<String>> + 'a>;
type Undo<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

/// Something that was done, with its proof and, where it lasts, its end.
pub(crate) struct Act<'a> {
    proof: Proof<'a>,
    undo: Option<Undo<'a>>,
}

impl<'a> Act<'a> {
    /// It needs no end.
    pub(crate) fn seen_by(proof: impl FnMut() -> Result<Option<String>> + 'a) -> Act<'a> {
        Act { proof: Box::new(proof), undo: None }
    }

    /// How it is ended.
    pub(crate) fn undone_by(mut self, undo: impl FnOnce() -> Result<()> + 'a) -> Act<'a> {
        self.undo = Some(Box::new(undo));
        self
    }
}

impl Fault for Act<'_> {
    fn proof(&mut self) -> Result<Option<String>> {
        (self.proof)()
    }

    fn heal(&mut self) -> Result<()> {
        self.undo.take().map_or(Ok(()), |undo| undo())
    }
}
