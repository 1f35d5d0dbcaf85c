//! Takes over a PostgreSQL that exists: the primary in place, its stock standby in place, and the way
//! back. By a person at the node; the daemon founds the cluster on it, and never does so unasked.
//!
//! `facts` looks, `plan`, `findings` and `settings` judge, `manifest` remembers, `apply` and `undo` change.
//! No data file is ever written, moved or removed here.

mod apply;
mod facts;
mod findings;
mod manifest;
mod plan;
mod settings;
mod undo;

#[cfg(test)]
mod tests;

use understudy_postgres::Server;

use crate::config::{NodeConfig, PostgresConfig};
use crate::daemon::{RunError, prepare_server};

pub use apply::{Applied, Waiting, apply};
pub use facts::DebianCluster;
pub use findings::{Finding, Severity};
pub use plan::{FileChange, Identity, Kept, Part, Plan};
pub use settings::Change;
pub use undo::{UndoOptions, Undone, undo};

/// Why nothing, or not everything, was done.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Something is in the way; the plan has it.
    #[error("adopt this server: {count} findings are in the way:\n{words}")]
    Blocked {
        /// How many.
        count: usize,
        /// Each with its remedy.
        words: String,
    },
    /// It is not possible or not safe now.
    #[error("{0}")]
    Refused(String),
    /// The node's configuration or its parts.
    #[error("look at the node")]
    Node(#[from] RunError),
    /// Something failed; where it stands is in the words.
    #[error("{what}")]
    Failed {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn failed<E>(what: impl Into<String>) -> impl FnOnce(E) -> AdoptError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| AdoptError::Failed { what: what.into(), source: source.into() }
}

/// The PostgreSQL of a data node's configuration.
fn postgres_of(config: &NodeConfig) -> Result<&PostgresConfig, AdoptError> {
    config.postgres.as_ref().ok_or_else(|| {
        AdoptError::Refused(format!(
            "node {} is a {}: it has no PostgreSQL, start its daemon",
            config.name,
            config.kind.as_str()
        ))
    })
}

async fn server_of(config: &NodeConfig) -> Result<Server, AdoptError> {
    Ok(prepare_server(config, postgres_of(config)?).await?)
}

/// Who the server is asked as: the named role, else the OS user's own and the usual one.
fn roles_to_ask(config: &PostgresConfig, role: Option<&str>) -> Vec<String> {
    match role {
        Some(role) => vec![role.to_owned()],
        None => {
            let mut roles = vec![config.os_user.clone(), "postgres".to_owned()];
            roles.dedup();
            roles
        }
    }
}

/// Looks at everything and says what an adoption would change and what is in its way. Changes nothing.
///
/// # Errors
/// When the node has no PostgreSQL, or nothing can be looked at.
pub async fn examine(config: &NodeConfig, role: Option<&str>) -> Result<Plan, AdoptError> {
    let server = server_of(config).await?;
    let roles = roles_to_ask(postgres_of(config)?, role);
    let facts = facts::look(&server, &config.data_dir, &roles).await?;
    Ok(plan::make(config, &server.settings_as_primary(), &facts))
}
