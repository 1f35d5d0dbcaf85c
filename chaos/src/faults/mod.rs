//! What can be done to a site. Each fault proves that it really happened, and can be ended.

pub(crate) mod acts;
pub(crate) mod clocks;
pub(crate) mod flows;
pub(crate) mod links;
pub(crate) mod processes;
pub(crate) mod syscalls;
pub(crate) mod volumes;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

use anyhow::Result;

/// A fault that has been begun.
pub(crate) trait Fault {
    /// Evidence that it happened, read from the kernel; `None` while there is none yet.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn proof(&mut self) -> Result<Option<String>>;

    /// Ends it; a second time does nothing.
    ///
    /// # Errors
    /// When it cannot be ended.
    fn heal(&mut self) -> Result<()>;
}
