//! The chart has its own copy of the definitions.

use std::{collections::BTreeMap, fs, path::Path};

const COMMAND: &str = "run `make manifests` and commit the result";

fn files(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("the directory is readable").path();
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        (name, fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    };
    entries.map(file).collect()
}

#[test]
fn its_definitions_are_current() {
    let (definitions, copies) =
        (files(&super::top().join("crds")), files(&super::top().join("deploy/chart/podtap/definitions")));
    assert_eq!(definitions.keys().collect::<Vec<_>>(), copies.keys().collect::<Vec<_>>(), "{COMMAND}");
    for (name, text) in definitions {
        assert!(copies[&name] == text, "the chart's definitions/{name} is not crds/{name}: {COMMAND}");
    }
}

/// Tools that package or fetch charts drop symbolic links, or refuse them.
#[test]
fn it_has_no_symbolic_links() {
    fn check(path: &Path) {
        assert!(!path.is_symlink(), "{} is a symbolic link", path.display());
        if path.is_dir() {
            fs::read_dir(path).expect("it is readable").for_each(|entry| check(&entry.expect("it is readable").path()));
        }
    }
    check(&super::top().join("deploy/chart"));
}
