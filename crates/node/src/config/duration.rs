//! Durations as an operator writes them: `"750ms"`, `"15s"`, `"1h30m"`.
//!
//! A number without a unit is refused: seconds and milliseconds have been taken for each other too
//! often.

use std::time::Duration;

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// What a duration must look like.
pub(super) const EXPECTED: &str =
    "expected whole numbers with units ms, s, m, h or d, such as \"750ms\" or \"1h30m\"";

/// Reads one or more `<number><unit>`, largest unit first or not.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..letters])?;
        rest = &rest[letters..];
        millis = millis.checked_add(number.checked_mul(*unit)?)?;
    }
    (!text.is_empty()).then(|| Duration::from_millis(millis))
}

/// Writes it so that [`parse`] reads it back; parts below a millisecond are dropped.
pub(super) fn format(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    // 750ms and 1500ms are read more easily than 1s500ms.
    if !millis.is_multiple_of(1000) {
        return format!("{millis}ms");
    }
    let mut text = String::new();
    for (name, unit) in UNITS {
        if millis >= unit {
            text.push_str(&format!("{}{name}", millis / unit));
            millis %= unit;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_back_what_it_wrote() {
        for text in ["750ms", "15s", "1h", "1h30m", "2d", "1500ms", "0s", "1m5s"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn a_number_without_a_unit_is_no_duration() {
        for text in ["", "15", "s", "-1s", "1.5s", "15 s", "15S", "99999999999999999999s", "5y"] {
            assert_eq!(parse(text), None, "{text:?} was accepted");
        }
    }
}
