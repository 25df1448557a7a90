//! Every crate opts into the lints of the workspace; cargo does not report one that does not.

use std::fs;

/// Folders of the workspace's members, as the root `Cargo.toml` lists them.
fn members() -> Vec<String> {
    let manifest = fs::read_to_string(super::top().join("Cargo.toml")).expect("Cargo.toml exists");
    let list = manifest
        .split_once("members = [")
        .expect("the workspace has members")
        .1
        .split_once(']')
        .expect("the list ends")
        .0;
    list.split(',').map(|m| m.trim().trim_matches('"').to_owned()).filter(|m| !m.is_empty()).collect()
}

fn opts_in(manifest: &str) -> bool {
    let section = manifest.split("\n[").find(|section| section.trim_start_matches('[').starts_with("lints]"));
    section.is_some_and(|lines| lines.lines().any(|line| line.trim() == "workspace = true"))
}

#[test]
fn every_crate_opts_into_the_workspace_lints() {
    let members = members();
    assert!(members.len() >= 6, "{members:?}");
    for member in members {
        let manifest =
            fs::read_to_string(super::top().join(&member).join("Cargo.toml")).expect("a member has a manifest");
        assert!(opts_in(&manifest), "{member}/Cargo.toml: add\n[lints]\nworkspace = true");
    }
}

#[test]
fn this_guard_sees_a_crate_that_does_not() {
    assert!(opts_in("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
    assert!(!opts_in("[package]\nversion.workspace = true\n\n[lints]\n\n[dependencies]\nworkspace = true\n"));
    assert!(!opts_in("[package]\nname = \"a\"\n"));
}
