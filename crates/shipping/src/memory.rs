//! How the C library's allocator treats memory that WAL has passed through.
//!
//! WAL comes in pieces of 128 KiB. By default memory of that size goes back to the kernel as soon as it is
//! free, and the next piece costs a page fault, and a page to be cleared, for every 4 KiB of it. That was
//! up to a sixth of the processor's time of catching up. What is kept is what each arena has free at its end,
//! up to a bound, and what lies below memory that is in use.

/// Allocations up to this size come from memory that is kept, bytes.
#[cfg(target_env = "gnu")]
const KEPT_ALLOCATION_MAX: libc::c_int = 4 << 20;
/// Free memory at the end of an arena up to this size is kept, bytes.
#[cfg(target_env = "gnu")]
const KEPT_MAX: libc::c_int = 32 << 20;

/// Lets the allocator keep freed memory for the next piece of WAL; once, before there are threads.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub fn keep_freed_memory() {
    // SAFETY: mallopt(3) takes two integers and changes a parameter of the allocator under its own lock.
    // It refuses what it does not know with 0, and then everything is as it was: slower, not wrong.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_ALLOCATION_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_MAX);
    }
}

/// Other C libraries have their own ways.
#[cfg(not(target_env = "gnu"))]
pub fn keep_freed_memory() {}
