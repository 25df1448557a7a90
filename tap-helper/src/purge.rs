//! `tap-helper purge`: removes everything that carries PodTap's marks.

use serde::Serialize;
use tap_wire::Desired;

use crate::{
    apply::{OnceError, apply},
    inspect::{NamespaceContents, inspect},
    log::Log,
};

/// What a purge did.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Purged {
    /// What was there before.
    pub removed: Vec<NamespaceContents>,
    /// What could not be removed.
    pub remaining: Vec<NamespaceContents>,
}

/// Removes all of it. On a clean node it does nothing.
pub fn purge(log: Log) -> Result<Purged, OnceError> {
    let removed = inspect(log)?;
    apply(Desired::default(), log)?;
    let remaining = inspect(log)?;
    Ok(Purged { removed, remaining })
}
