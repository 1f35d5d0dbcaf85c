//! Where a node holds WAL at this moment: its journal, and at a primary its server's `pg_wal`.

use understudy_postgres::DataDirectory;
use understudy_shipping::journal::Journal;
use understudy_shipping::journal::inspect::Place;

use crate::hands::{Hands, chain};
use crate::observer::LocalSeen;

/// The places, the older WAL first, and what could not be looked at.
pub(super) async fn places(
    journal: Option<&Journal>,
    hands: Option<&Hands>,
    seen: &LocalSeen,
) -> (Vec<Place>, Vec<String>) {
    let mut places: Vec<Place> = journal.and_then(Journal::place).into_iter().collect();
    let mut troubles = Vec::new();
    let Some(hands) = hands else { return (places, troubles) };
    match pg_wal(hands, seen).await {
        Ok(place) => places.extend(place),
        Err(trouble) => troubles.push(trouble),
    }
    (places, troubles)
}

/// A standby's is left out: what it has it got from the journal.
async fn pg_wal(hands: &Hands, seen: &LocalSeen) -> Result<Option<Place>, String> {
    let writes = seen.observation.as_ref().filter(|observation| !observation.in_recovery);
    let position = writes.and_then(|writes| Some((writes.timeline?, writes.flush_lsn?)));
    let Some((timeline, flush_lsn)) = position else {
        if hands.source().borrow().is_none() {
            return Ok(None);
        }
        let words =
            "pg_wal: PostgreSQL does not say how far it has flushed; ask again when it answers";
        return Err(words.to_owned());
    };
    let control = match hands.server().inspect().await {
        Ok(DataDirectory::Cluster(control)) => control,
        Ok(_) => return Err("pg_wal: the data directory is not a whole cluster".to_owned()),
        Err(error) => return Err(format!("pg_wal: {}", chain(&error))),
    };
    let dir = hands.server().pg_wal_dir();
    let (system_id, size) = (control.system_id, control.segment_size);
    Ok(Some(Place::of_pg_wal(&dir, system_id, size, timeline, flush_lsn)))
}
