//! Who is let in: the marked blocks at the top of `pg_hba.conf` and `pg_ident.conf`.
//!
//! Only the marked block is ours. All else stays byte for byte, and is never interpreted.

use crate::settings::{ROLE_MANAGEMENT, ROLE_REPLICATION, ROLE_REWIND};

const BEGIN: &str = "# BEGIN understudy";
const END: &str = "# END understudy";
/// The user-name map of `pg_ident.conf` that our roles are reached by.
const MAP: &str = "understudy";

/// Whether clients are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HbaMode {
    /// The node's own roles over the Unix socket, and nobody else.
    Closed,
    /// The operator's own lines decide, but nobody else may replicate: any connection of the gate's
    /// name would release commits.
    Open,
}

/// Our block of `pg_hba.conf`. The first line that matches decides, so it must stand first.
fn hba_block(mode: HbaMode) -> String {
    let roles = format!("{ROLE_MANAGEMENT},{ROLE_REWIND},{ROLE_REPLICATION}");
    let mut lines = vec![
        format!("{BEGIN} (managed: changes between these marks are overwritten)"),
        format!("local all {ROLE_MANAGEMENT},{ROLE_REWIND} peer map={MAP}"),
        format!("local replication {ROLE_REPLICATION} peer map={MAP}"),
        format!("local all {roles} reject"),
        format!("host all {roles} all reject"),
        "local replication all reject".to_owned(),
        "host replication all all reject".to_owned(),
    ];
    if mode == HbaMode::Closed {
        lines.push("local all all reject".to_owned());
        lines.push("host all all all reject".to_owned());
    }
    lines.push(END.to_owned());
    lines.join("\n") + "\n"
}

/// Our block of `pg_ident.conf`: which OS users may be our roles.
fn ident_block(os_users: &[&str]) -> String {
    let mut block = format!("{BEGIN} (managed: changes between these marks are overwritten)\n");
    for user in os_users {
        for role in [ROLE_MANAGEMENT, ROLE_REPLICATION, ROLE_REWIND] {
            block.push_str(&format!("{MAP} \"{user}\" {role}\n"));
        }
    }
    block + END + "\n"
}

/// The file with our block replaced, or put on top when there was none.
pub(crate) fn hba_with_block(text: &[u8], mode: HbaMode) -> Vec<u8> {
    with_block(text, &hba_block(mode))
}

/// The same for `pg_ident.conf`.
pub(crate) fn ident_with_block(text: &[u8], os_users: &[&str]) -> Vec<u8> {
    with_block(text, &ident_block(os_users))
}

/// Removes every block of ours and puts the new one on top.
fn with_block(text: &[u8], block: &str) -> Vec<u8> {
    let mut result = block.as_bytes().to_vec();
    result.extend(without_block(text));
    result
}

/// The file without any block of ours. A begin mark without its end is taken for the one line that it
/// stands on, so that no line of the operator's is lost.
pub(crate) fn without_block(text: &[u8]) -> Vec<u8> {
    let mut result = Vec::new();
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let mut index = 0;
    while index < lines.len() {
        let line = lines[index];
        if line.starts_with(BEGIN.as_bytes()) {
            let rest = &lines[index..];
            let end = rest.iter().position(|line| line.starts_with(END.as_bytes())).unwrap_or(0);
            index += end + 1;
            continue;
        }
        result.extend_from_slice(line);
        index += 1;
    }
    result
}

/// How many lines at the top are ours.
pub(crate) fn block_lines(text: &[u8]) -> usize {
    let lines = text.split(|byte| *byte == b'\n');
    let mut ours = lines.take_while(|line| !line.starts_with(END.as_bytes()));
    match ours.next() {
        Some(first) if first.starts_with(BEGIN.as_bytes()) => ours.count() + 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &[u8] = b"# mine\r\nhost all all 10.0.0.0/8 md5\n\nlocal all \xff peer";

    #[test]
    fn the_operators_lines_stay_byte_for_byte_however_often_the_block_changes() {
        let mut text = USERS.to_vec();
        for mode in [HbaMode::Closed, HbaMode::Open, HbaMode::Open, HbaMode::Closed] {
            text = hba_with_block(&text, mode);
            let block = hba_block(mode);
            assert_eq!(&text[..block.len()], block.as_bytes());
            assert_eq!(&text[block.len()..], USERS);
            assert_eq!(without_block(&text), USERS);
        }
    }

    #[test]
    fn a_block_without_an_end_loses_no_line_of_the_operators() {
        let text = format!("{BEGIN}\nlocal all mine peer\n");
        let result = String::from_utf8(hba_with_block(text.as_bytes(), HbaMode::Open)).unwrap();
        assert!(result.ends_with("local all mine peer\n"), "{result}");
        assert_eq!(result.matches(BEGIN).count(), 1);
    }

    #[test]
    fn the_lines_of_the_block_are_counted_with_both_of_its_marks() {
        for mode in [HbaMode::Closed, HbaMode::Open] {
            let text = hba_with_block(USERS, mode);
            let rest = text.split_inclusive(|byte| *byte == b'\n').skip(block_lines(&text));
            assert_eq!(rest.collect::<Vec<_>>().concat(), USERS);
        }
        assert_eq!(block_lines(USERS), 0);
    }

    #[test]
    fn a_closed_block_ends_with_a_refusal_of_everybody() {
        let closed = hba_block(HbaMode::Closed);
        let last: Vec<_> = closed.lines().rev().skip(1).take(2).collect();
        assert_eq!(last, ["host all all all reject", "local all all reject"]);
    }
}
