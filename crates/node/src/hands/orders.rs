//! The tasks of orders to this node: a planned stop and start, and the settings read anew. Each leaves a
//! server from which the core can go on as if it had not been ordered.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use understudy_core::node::{Completion, TaskFailure};
use understudy_postgres::Reloaded;

use super::{Hands, blocking, transient, transient_words};
use crate::config::{NodeConfig, PostgresConfig};
use crate::retention;

impl Hands {
    /// The gate and the receivers' streams stay up until the server is gone, as with a switchover; what is
    /// left after `within` is ended the hard way.
    pub(super) async fn stop_for_restart(
        &self,
        within: Duration,
    ) -> Result<Completion, TaskFailure> {
        let begun = Instant::now();
        let stopped = self.server().stop_fast(within).await;
        if let Err(error) = &stopped {
            tracing::warn!(error = super::chain(error), "the fast stop is broken off");
        }
        self.stop_source().await;
        self.set_held(None);
        let _proof = self.server().fence().await.map_err(transient)?;
        tracing::info!(took = ?begun.elapsed(), clean = stopped.is_ok(), "stopped for a restart");
        Ok(Completion::Fenced)
    }

    /// The journal is not touched: it goes on receiving and acknowledging.
    pub(super) async fn restart_standby(
        &self,
        within: Duration,
    ) -> Result<Completion, TaskFailure> {
        let begun = Instant::now();
        if let Err(error) = self.server().stop_fast(within).await {
            tracing::warn!(error = super::chain(&error), "the fast stop is broken off");
        }
        let _proof = self.server().fence().await.map_err(transient)?;
        self.start_standby().await?;
        tracing::info!(took = ?begun.elapsed(), "standby restarted");
        Ok(Completion::StandbyRestarted)
    }

    /// Nothing is changed unless the whole file is right, by this program's judgement and PostgreSQL's.
    pub(super) async fn reload(&self) -> Result<Completion, TaskFailure> {
        let started = self.options().config.clone();
        let path = self.options().config_path.clone();
        let read = blocking(move || {
            let fresh = NodeConfig::load(&path).map_err(|error| super::chain(&error))?;
            let missing = "the configuration has no section [postgres] any more; put it back";
            let postgres = fresh.postgres.clone().ok_or(missing.to_owned())?;
            let policies = retention::policies(&fresh, &postgres);
            let (_, pg_wal) = policies.map_err(|error| super::chain(&error))?;
            let parameters = retention::with_limits(postgres.parameters.clone(), &pg_wal);
            Ok::<_, String>((parameters, elsewhere(&started, &fresh)))
        });
        let (parameters, elsewhere) = read
            .await
            .map_err(|words| transient_words(&format!("nothing was changed: {words}")))?;
        let reloaded = self.server().reload(parameters).await.map_err(transient)?;
        let words = describe(&reloaded, elsewhere);
        tracing::info!(words, "settings read anew");
        Ok(Completion::Reloaded { words })
    }
}

/// Whether the file differs in anything that only the daemon's own start reads.
fn elsewhere(started: &Arc<NodeConfig>, fresh: &NodeConfig) -> bool {
    let without = |postgres: &Option<PostgresConfig>| {
        postgres
            .clone()
            .map(|postgres| PostgresConfig { parameters: Default::default(), ..postgres })
    };
    without(&started.postgres) != without(&fresh.postgres)
        || started.timing != fresh.timing
        || started.wal != fresh.wal
        || started.log != fresh.log
}

/// The words of an operation are for everybody: what could hold a secret is told by its name alone.
fn told((name, value): &(String, String)) -> String {
    let secret = name.ends_with("_command") || name.ends_with("conninfo") || name.contains('.');
    if secret { name.clone() } else { format!("{name} = {value}") }
}

fn describe(reloaded: &Reloaded, elsewhere: bool) -> String {
    let mut words = if reloaded.changed.is_empty() {
        "no setting in force changed".to_owned()
    } else {
        let changed: Vec<String> = reloaded.changed.iter().map(told).collect();
        format!("changed: {}", changed.join(", "))
    };
    if !reloaded.pending_restart.is_empty() {
        let names = reloaded.pending_restart.join(", ");
        words.push_str(&format!("; pending a restart: {names}"));
    }
    if !reloaded.overridden.is_empty() {
        let names = reloaded.overridden.join(", ");
        words.push_str(&format!(
            "; not in force, because ALTER SYSTEM has set them: {names} (ALTER SYSTEM RESET takes \
             that back)"
        ));
    }
    if elsewhere {
        words.push_str(
            "; the file also differs outside [postgres.parameters], which the daemon reads when it \
             is started",
        );
    }
    words
}
