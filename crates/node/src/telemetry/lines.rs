//! The newest lines of the log, in memory and bounded: for a bug report, when the log itself is out of
//! reach.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines that are kept, and how long one may be.
const LINES_KEPT: usize = 1000;
const LINE_BYTES_MAX: usize = 4096;

/// Cheap to clone. Every write is one line, as the formatter does it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogLines {
    kept: Arc<Mutex<VecDeque<String>>>,
}

impl LogLines {
    /// All of them, the oldest first.
    pub(crate) fn text(&self) -> String {
        self.lock().iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
        let line = String::from_utf8_lossy(line).trim_end().to_owned();
        let mut kept = self.lock();
        if kept.len() == LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_a_long_one_is_cut() {
        let mut lines = LogLines::default();
        for n in 0..LINES_KEPT + 7 {
            lines.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        lines.write_all(&vec![b'x'; 100_000]).unwrap();
        let text = lines.text();
        assert_eq!(text.lines().count(), LINES_KEPT);
        assert!(text.starts_with("line 8\n"), "{}", &text[..20]);
        assert!(text.len() < 100_000);
    }
}
