//! Changes bytes in the ways that parsers mind: lengths, counts, ends, order, pieces of other inputs.

use crate::random::Random;

/// Inputs do not grow beyond this.
pub(crate) const INPUT_BYTES_MAX: usize = 64 << 10;
/// Changes made to one input at once.
const CHANGES_MAX: usize = 6;

/// Numbers at which lengths and counts go wrong.
const INTERESTING: [u64; 18] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    24,
    40,
    255,
    8192,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    u64::MAX,
];

/// Changes `input`; `other` lends pieces, `words` are what the format knows.
pub(crate) fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    for _ in 0..=random.below(CHANGES_MAX) {
        if input.is_empty() {
            input.extend_from_slice(other);
        }
        change(input, other, words, random);
        input.truncate(INPUT_BYTES_MAX);
    }
}

fn change(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    if input.is_empty() {
        input.push(random.next() as u8);
        return;
    }
    let at = random.below(input.len());
    match random.below(11) {
        0 | 1 => input[at] ^= 1 << random.below(8),
        2 => input[at] = random.next() as u8,
        3 => number(input, at, random),
        4 => {
            let cut = 1 + random.below((input.len() - at).min(64));
            input.drain(at..at + cut);
        }
        5 => input.truncate(at),
        6 => {
            let piece = piece(input, random).to_vec();
            insert(input, at, &piece);
        }
        7 if !other.is_empty() => insert(input, at, piece(other, random)),
        8 if !other.is_empty() => {
            let piece = piece(other, random);
            let fits = piece.len().min(input.len() - at);
            input[at..at + fits].copy_from_slice(&piece[..fits]);
        }
        9 if !words.is_empty() => insert(input, at, words[random.below(words.len())]),
        _ => {
            let bytes = random.next().to_le_bytes();
            insert(input, at, &bytes[..1 + random.below(8)]);
        }
    }
}

/// Part of some bytes: mostly short, sometimes all that follows.
fn piece<'a>(from: &'a [u8], random: &mut Random) -> &'a [u8] {
    let at = random.below(from.len());
    let rest = from.len() - at;
    let length = if random.once_in(8) { rest } else { 1 + random.below(rest.min(64)) };
    &from[at..at + length]
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

/// Overwrites or moves a number of 2, 4 or 8 bytes, in either order.
fn number(input: &mut [u8], at: usize, random: &mut Random) {
    let width = (*random.pick(&[2, 4, 8])).min(input.len() - at);
    let field = &mut input[at..at + width];
    let big_endian = random.once_in(2);
    let mut value = [0; 8];
    for (index, byte) in field.iter().enumerate() {
        value[if big_endian { width - 1 - index } else { index }] = *byte;
    }
    let before = u64::from_le_bytes(value);
    let after = match random.below(4) {
        0 => before.wrapping_add(1 + random.below(9) as u64),
        1 => before.wrapping_sub(1 + random.below(9) as u64),
        _ => *random.pick(&INTERESTING),
    };
    let value = after.to_le_bytes();
    for (index, byte) in field.iter_mut().enumerate() {
        *byte = value[if big_endian { width - 1 - index } else { index }];
    }
}
