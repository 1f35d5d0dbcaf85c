//! Threads with an event loop of their own, for what must not stand behind anything else.

use std::future::Future;
use std::io;
use std::sync::mpsc;

/// Runs what `work` makes to its end, on a new thread and what it spawns beside it.
///
/// # Errors
/// When the thread or its event loop cannot be made; nothing has begun then.
pub(crate) fn run_on_its_own<F: Future>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<()> {
    let (made, making) = mpsc::sync_channel(1);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(made.send(Err(error))),
        };
        // Whoever started it waits for this, so it is there.
        drop(made.send(Ok(())));
        runtime.block_on(work());
        // What still waits for a disk is not waited for.
        runtime.shutdown_background();
    })?;
    making.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))
}
