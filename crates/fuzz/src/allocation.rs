//! How much memory a piece of work had at its peak, counted for each thread.
//!
//! A length of four gigabytes in a message must not be believed before its bytes are there; that shows in
//! no result, only here.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::OnceLock;

/// What any work may have, whatever its input.
const FREE_BYTES: usize = 32 << 10;
/// Nothing that is right asks for so much at once. A system may refuse it, which would end the process
/// without a word about the input.
const ABSURD_BYTES: usize = 4 << 30;

/// Told of an absurd request before it is made; it must not come back.
static ON_ABSURD: OnceLock<fn(usize)> = OnceLock::new();

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Has `tell` called when somebody asks for an absurd amount.
pub(crate) fn on_absurd_request(tell: fn(usize)) {
    // The first one stays; there is only one.
    let _ = ON_ABSURD.set(tell);
}

fn asked(bytes: usize) {
    if bytes > ABSURD_BYTES
        && let Some(tell) = ON_ABSURD.get()
    {
        tell(bytes);
    }
    count(bytes.cast_signed());
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more, and nobody asks for them.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing, because the
// counters are constants without a destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        asked(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        asked(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above, and about `pointer`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // The old and the new may be there at once.
        asked(new_size);
        count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// Does the work, and asserts that it never had more than `times` the `input_bytes` at once, beside a little
/// that is free.
pub(crate) fn within<T>(input_bytes: usize, times: usize, work: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    let used = usize::try_from(PEAK.get() - before).unwrap_or(0);
    let allowed = FREE_BYTES + times * input_bytes;
    assert!(used <= allowed, "{used} bytes of memory for {input_bytes} bytes of input");
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_out_of_proportion_is_noticed_even_if_nobody_touches_it() {
        within(1000, 64, || drop(vec![0_u8; 60_000]));
        let much = || within(10, 64, || drop(Vec::<u8>::with_capacity(4 << 30)));
        assert!(std::panic::catch_unwind(much).is_err());
    }
}
