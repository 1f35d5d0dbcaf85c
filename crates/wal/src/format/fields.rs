//! Takes little-endian numbers from the front of bytes that may end anywhere.

/// What is left of some bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes; `None`, and nothing taken, when there are fewer.
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A count (`int`) and that many items of `item_bytes` each; `None` when they are not all there.
    pub(super) fn counted(&mut self, item_bytes: usize) -> Option<(u32, &'a [u8])> {
        let count = self.u32()?;
        let bytes = usize::try_from(count).ok()?.checked_mul(item_bytes)?;
        Some((count, self.take(bytes)?))
    }

    /// A text that ends with a zero byte, which is taken too.
    pub(super) fn c_string(&mut self) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.take(length)?;
        self.take(1)?;
        Some(text)
    }
}
