//! Names of pods, services and nodes for the program that reads frames: from a file, or from the one that watches the cluster.

pub mod socket;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use podtap_flow::names::Objects;

/// Reads a file of names.
pub fn read(path: &Path) -> Result<Objects> {
    let text = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} has no names of pods and services", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_in_the_documentation_are_read() {
        let page = include_str!("../../../docs/collector.md");
        let example = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let objects: Objects = serde_json::from_str(example.expect("an example")).expect("names");
        assert_eq!((objects.pods.len(), objects.services.len(), objects.networks.len()), (1, 1, 1));
        let unknown = r#"{"pods": [], "service": []}"#;
        assert!(serde_json::from_str::<Objects>(unknown).is_err(), "what is not read is refused");
    }
}
