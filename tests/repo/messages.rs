//! What users of a namespace read tells them to do only what they may do.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Objects that only administrators may read, and commands for which one needs a node. Who needs them is told whom to ask.
const FOR_ADMINISTRATORS: [&str; 8] = [
    "kubectl create rolebinding",
    "kubectl get node",
    "kubectl describe node",
    "kubectl logs",
    "kubectl describe and kubectl logs",
    "see the NodeTaps",
    "podtap-system get",
    "modprobe",
];

/// The sources of a crate, without its tests.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a crate has sources") {
        let path = entry.expect("sources are readable").path();
        let is_test = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !is_test {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
            found.push(path);
        }
    }
}

/// The manifests with the messages of the admission policies.
fn manifests() -> Vec<PathBuf> {
    let templates = fs::read_dir(super::top().join("deploy/chart/podtap/templates")).expect("the chart has templates");
    let templates = templates.map(|entry| entry.expect("templates are readable").path());
    templates.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

/// The lines of a source that can be part of a message.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let production = text.split("#[cfg(test)]").next().unwrap_or_default();
    production.lines().filter(|line| !line.trim_start().starts_with("//") && !line.trim_start().starts_with("# "))
}

#[test]
fn messages_ask_of_users_only_what_they_may_do() {
    let mut found = Vec::new();
    for directory in ["operator/controller/src", "tap-helper/src", "model/src"] {
        sources(&super::top().join(directory), &mut found);
    }
    assert!(found.len() > 100, "sources are found: {}", found.len());
    let manifests = manifests();
    assert!(manifests.len() > 5, "manifests are found: {}", manifests.len());
    for path in found.into_iter().chain(manifests) {
        let text = fs::read_to_string(&path).expect("a source is text");
        for line in lines(&text) {
            for words in FOR_ADMINISTRATORS {
                assert!(!line.contains(words), "{}: users may not: {line}", path.display());
            }
        }
    }
}

#[test]
fn this_guard_sees_messages_and_nothing_else() {
    let text = "// kubectl logs\n# kubectl logs\n\"kubectl logs\"\n#[cfg(test)]\n\"kubectl logs\"";
    assert_eq!(lines(text).collect::<Vec<_>>(), ["\"kubectl logs\""]);
}
