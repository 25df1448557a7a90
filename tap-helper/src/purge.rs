//! `tap-helper purge`: removes everything that carries PodTap's marks.

use podtap_model::DesiredState;
use serde::Serialize;

use crate::{
    apply::{ApplyError, apply},
    inspect::{NamespaceContents, inspect},
};

/// The result of a purge.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Purged {
    /// What existed before.
    pub removed: Vec<NamespaceContents>,
    /// What could not be removed.
    pub remaining: Vec<NamespaceContents>,
}

/// Removes everything. Changes nothing on a clean node.
pub async fn purge() -> Result<Purged, ApplyError> {
    let removed = inspect().await?;
    apply(DesiredState::default()).await?;
    let remaining = inspect().await?;
    Ok(Purged { removed, remaining })
}
