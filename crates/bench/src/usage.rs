//! What processes have used of processor and memory, as the kernel counts it (proc(5)).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time of a live process since its start, its own and the kernel's for it.
///
/// # Errors
/// When it is gone.
pub(crate) fn processor_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    ticks(&text).map(in_time).with_context(|| format!("read {path}: it is cut short"))
}

/// `utime` and `stime`, the 14th and 15th field; the name before them may hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn in_time(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// The most memory that a live process has had at any time, in bytes (`VmHWM`).
///
/// # Errors
/// When it is gone.
pub(crate) fn memory_high_water(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = kib.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).with_context(|| format!("read {path}: it has no VmHWM"))
}

/// The machine's class, processors and memory: figures of different ones are not compared.
pub(crate) fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1));
    let gib = kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1_048_576;
    format!("{processors} processors, {gib} GiB")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test says what it expects by panicking
mod tests {
    use super::*;

    #[test]
    fn a_process_s_name_may_look_like_fields() {
        let stat = "12 (a) b (c 1 2) S 1 2 3 4 5 6 7 8 9 10 70 30 0 0";
        assert_eq!(ticks(stat), Some(100));
        assert_eq!(ticks("12 (x) S 1 2"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let begun = processor_time(std::process::id()).unwrap();
        let mut sum = 0u64;
        while processor_time(std::process::id()).unwrap() == begun {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(memory_high_water(std::process::id()).unwrap() > 1 << 20);
    }
}
