//! The files under `crds/` are generated from the Rust types.

use std::{fs, path::Path};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

const COMMAND: &str = "run `make crds` and commit the result";

#[test]
fn committed_definitions_are_current() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    for (file, definition) in podtap_api::definitions() {
        let text = fs::read_to_string(directory.join(file)).unwrap_or_else(|e| panic!("crds/{file}: {e}; {COMMAND}"));
        let committed: CustomResourceDefinition = serde_saphyr::from_str(&text).expect("a definition is YAML");
        assert!(committed == definition, "crds/{file} is not current: {COMMAND}");
    }
}

#[test]
fn no_definition_is_left_over() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    let known: Vec<_> = podtap_api::definitions().iter().map(|(file, _)| *file).collect();
    for entry in fs::read_dir(directory).expect("crds/ exists") {
        let name = entry.expect("crds/ is readable").file_name();
        assert!(known.iter().any(|k| name == *k), "crds/{} belongs to no kind: remove it", name.display());
    }
}
