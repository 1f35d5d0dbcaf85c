//! Asking every node for itself: which ones, in time, and why one did not answer.

use std::time::Duration;

use tonic::{Code, Status};

use crate::context::{Context, ContextNode};
use crate::operate::CallError;

/// How long a node may take to answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a node did not do what it was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Reason {
    /// It cannot be reached, or stopped answering.
    Unreachable(String),
    /// It answered no.
    Refused(String),
}

impl Reason {
    pub(crate) fn words(&self) -> &str {
        match self {
            Reason::Unreachable(words) | Reason::Refused(words) => words,
        }
    }
}

/// The nodes of the context, or those of them that were named.
///
/// # Errors
/// When a name is none of them.
pub(crate) fn chosen<'a>(
    context: &'a Context,
    only: &[String],
) -> Result<Vec<&'a ContextNode>, CallError> {
    let known = |name: &String| context.nodes.iter().any(|node| node.name.as_str() == name);
    if let Some(name) = only.iter().find(|name| !known(name)) {
        let words = format!("--node {name}: the context has no such node");
        return Err(CallError::Usage { words });
    }
    let wanted =
        |node: &&ContextNode| only.is_empty() || only.iter().any(|name| node.name.as_str() == name);
    Ok(context.nodes.iter().filter(wanted).collect())
}

/// That nobody answered, unless somebody did.
///
/// # Errors
/// When there are reasons only.
pub(crate) fn somebody<T>(answers: &[(String, Result<T, Reason>)]) -> Result<(), CallError> {
    let silent = answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().err()?)));
    let reasons: Vec<String> =
        silent.map(|(node, reason)| format!("{node}: {}", reason.words())).collect();
    if reasons.len() < answers.len() {
        return Ok(());
    }
    let refused = answers.iter().all(|(_, answer)| matches!(answer, Err(Reason::Refused(_))));
    Err(match refused {
        true => CallError::Failed { words: reasons.join("; ") },
        false => CallError::Unreachable { reasons },
    })
}

/// An answer that comes in time.
///
/// # Errors
/// Why there is none.
pub(crate) async fn within<T>(
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Reason> {
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|status| judged(&status)),
        Err(_) => Err(Reason::Unreachable(format!("no answer in {CALL_TIMEOUT:?}"))),
    }
}

fn judged(status: &Status) -> Reason {
    let words = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::InvalidArgument
        | Code::Unimplemented => Reason::Refused(words),
        _ => Reason::Unreachable(words),
    }
}
