//! Every declared dependency is used, and tests' dependencies are declared as such.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Package and dependency: needed although no source names it.
const UNNAMED: [(&str, &str); 3] = [
    // The code that `#[derive(CustomResource)]` generates calls it.
    ("podtap-api", "serde_json"),
    // As does that of `#[derive(Resource)]`.
    ("podtap-agent", "k8s-openapi"),
    // kube builds only where the version of Kubernetes is chosen.
    ("podtap-model", "k8s-openapi"),
];

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The workspace's packages, as `cargo metadata` describes them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--no-deps"])
        .current_dir(super::top())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    list(&metadata["packages"]).to_vec()
}

/// Which kind of dependency a source file justifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Product,
    Tests,
    BuildScript,
}

/// Whether only `cfg(test)` compiles a file, by the conventions of this tree: `tests.rs`, `name_tests.rs` and folders called `tests`.
fn is_of_tests(file: &Path, root: &Path) -> bool {
    let below = file.strip_prefix(root).unwrap_or(file);
    let stem = below.file_stem().unwrap_or_default().to_string_lossy();
    stem == "tests" || stem.ends_with("_tests") || below.components().any(|part| part.as_os_str() == "tests")
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
        let path = entry.expect("sources are readable").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All sources of a package: of each target, the folder of its root file. A build script has no folder of its own.
fn sources(package: &Value) -> BTreeSet<(Part, PathBuf)> {
    let mut found = BTreeSet::new();
    for target in list(&package["targets"]) {
        let (root, kind) = (PathBuf::from(text(&target["src_path"])), text(&target["kind"][0]));
        let part = match kind {
            "custom-build" => Part::BuildScript,
            "test" | "bench" | "example" => Part::Tests,
            _ => Part::Product,
        };
        if part == Part::BuildScript {
            found.insert((part, root));
            continue;
        }
        let folder = root.parent().expect("a source is in a folder");
        let mut files = Vec::new();
        rust_files(folder, &mut files);
        for file in files {
            let in_tests = part == Part::Product && is_of_tests(&file, folder);
            found.insert((if in_tests { Part::Tests } else { part }, file));
        }
    }
    found
}

/// Whether a source names a crate: at the start of a path, or alone in `use` or `extern crate`. Comments do not count.
fn names(source: &str, crate_name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    source.lines().map(|line| line.split("//").next().unwrap_or_default()).any(|line| {
        line.match_indices(crate_name).any(|(at, _)| {
            let (before, after) = (line[..at].trim_end(), line[at + crate_name.len()..].trim_start());
            let adjoins = line[..at].ends_with(is_word) || line[at + crate_name.len()..].starts_with(is_word);
            // `::name` starts a path, `other::name` continues one.
            let continues = before.strip_suffix("::").is_some_and(|path| path.ends_with(is_word));
            let imported = ["use", "{", ","].iter().any(|word| before.ends_with(word)) && line.contains("use ");
            let declared = before.ends_with("extern crate");
            !adjoins && !continues && !before.ends_with('.') && (after.starts_with("::") || imported || declared)
        })
    })
}

/// The dependencies of one package that are unused or in the wrong table.
fn findings(package: &Value) -> Vec<String> {
    let sources: Vec<(Part, String)> = sources(package)
        .into_iter()
        .map(|(part, file)| (part, fs::read_to_string(file).expect("a source is text")))
        .collect();
    let mut found = Vec::new();
    for dependency in list(&package["dependencies"]) {
        let declared = dependency["rename"].as_str().unwrap_or(text(&dependency["name"]));
        // A package depends on itself to turn a feature on for its tests.
        if UNNAMED.contains(&(text(&package["name"]), declared)) || package["name"] == declared {
            continue;
        }
        let name = declared.replace('-', "_");
        let used_by = |part: Part| sources.iter().any(|(of, source)| *of == part && names(source, &name));
        // `mod tests { .. }` inside a file counts as product code, so a development dependency may be named there, too.
        let finding = match dependency["kind"].as_str() {
            None if used_by(Part::Product) => None,
            None if used_by(Part::Tests) => Some("is only used by tests: move it to [dev-dependencies]"),
            Some("dev") if used_by(Part::Tests) || used_by(Part::Product) => None,
            Some("build") if used_by(Part::BuildScript) => None,
            _ => Some("is not used: remove it"),
        };
        found.extend(finding.map(|finding| format!("{}: {declared} {finding}", text(&package["name"]))));
    }
    found
}

/// The keys of `[workspace.dependencies]` in a manifest.
fn workspace_dependencies(manifest: &str) -> Vec<&str> {
    let table = manifest.split_once("[workspace.dependencies]").map(|(_, rest)| rest).unwrap_or_default();
    let table = table.split("\n[").next().unwrap_or_default();
    table
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0.trim()))
        .filter(|name| !name.starts_with('#'))
        .collect()
}

#[test]
fn every_dependency_is_used() {
    let packages = packages();
    assert!(packages.len() >= 6, "packages are found");
    let found: Vec<_> = packages.iter().flat_map(findings).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_workspace_dependency_is_used_by_a_member() {
    let manifest = fs::read_to_string(super::top().join("Cargo.toml")).expect("Cargo.toml is there");
    let packages = packages();
    let used: BTreeSet<_> = packages
        .iter()
        .flat_map(|package| list(&package["dependencies"]))
        .map(|dependency| dependency["rename"].as_str().unwrap_or(text(&dependency["name"])))
        .collect();
    let declared = workspace_dependencies(&manifest);
    assert!(declared.len() > 10, "dependencies are found: {declared:?}");
    let unused: Vec<_> = declared.into_iter().filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "no member uses {unused:?}: remove them from [workspace.dependencies]");
}

#[test]
fn this_guard_sees_what_it_guards_against() {
    // A made-up name: this file would otherwise count as using the crate.
    assert!(names("use a_crate::Value;", "a_crate"));
    assert!(names("    let x = a_crate::to_vec(&y);", "a_crate"));
    assert!(names("fn f(x: &::a_crate::Value) {}", "a_crate"));
    assert!(names("use {other, a_crate};", "a_crate"));
    assert!(names("use a_crate;", "a_crate"));
    assert!(names("extern crate a_crate;", "a_crate"));
    assert!(names("#[derive(a_crate::Derive)]", "a_crate"));
    assert!(!names("// a_crate::Value", "a_crate"));
    assert!(!names("use not_a_crate::Value;", "a_crate"));
    assert!(!names("use a_crate_more::Value;", "a_crate"));
    assert!(!names("use std::a_crate::Error;", "a_crate"));
    assert!(!names("let a_crate = a_crate + 1;", "a_crate"));
    assert!(!names("self.a_crate::<u8>();", "a_crate"));
    assert!(is_of_tests(Path::new("/a/src/x/tests.rs"), Path::new("/a/src")));
    assert!(is_of_tests(Path::new("/a/src/x/tests/one.rs"), Path::new("/a/src")));
    assert!(is_of_tests(Path::new("/a/src/x_tests.rs"), Path::new("/a/src")));
    assert!(!is_of_tests(Path::new("/tests/src/x.rs"), Path::new("/tests/src")));
    let manifest = "[workspace.dependencies]\n# why\na = \"1\"\nb-c = { path = \"=\" }\n\n[profile.release]\nd = 1\n";
    assert_eq!(workspace_dependencies(manifest), ["a", "b-c"]);
}
