//! Sizes as an operator writes them: `"64MiB"`, `"1GiB"`, `"0"`.
//!
//! Powers of two with their own names; `MB` is refused, because it has meant both.

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// What a size must look like.
pub(crate) const EXPECTED: &str = "expected a whole number with KiB, MiB or GiB, such as \"64MiB\"";

/// Reads `<number><unit>`; of all numbers only 0 needs no unit.
pub(crate) fn parse(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (digits, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Writes it so that [`parse`] reads it back; whole KiB only.
pub(super) fn format(bytes: u64) -> String {
    let fits = |unit: &&(&str, u64)| bytes > 0 && bytes.is_multiple_of(unit.1);
    match UNITS.iter().find(fits) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{}", bytes / 1024 * 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_back_what_it_wrote_and_a_bare_number_is_refused() {
        for text in ["64MiB", "1GiB", "1536KiB", "0"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        for text in ["64", "64MB", "MiB", "-1MiB", "1.5GiB", "", "99999999999999GiB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
