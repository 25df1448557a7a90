//! Links between the documents are not broken.

use std::{fs, path::Path};

/// Targets of the relative links in a Markdown text, without fragments.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|link| link.split('#').next().unwrap_or_default())
        .filter(|link| !link.is_empty() && !link.contains("://") && !link.starts_with("mailto:"))
        .collect()
}

fn documents(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).expect("the tree is readable") {
        let path = entry.expect("the tree is readable").path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if path.is_dir() && !hidden && !path.ends_with("target") {
            documents(&path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
}

#[test]
fn no_relative_link_is_broken() {
    let mut found = Vec::new();
    documents(&super::top(), &mut found);
    assert!(!found.is_empty(), "there are documents");
    for document in found {
        let text = fs::read_to_string(&document).expect("a document is text");
        for link in links(&text) {
            let target = document.parent().expect("a file has a folder").join(link);
            assert!(target.exists(), "{}: the link {link} is broken", document.display());
        }
    }
}

#[test]
fn links_are_found() {
    assert_eq!(links("see [a](docs/a.md#b), [c](https://c.example) and [d](#d)"), ["docs/a.md"]);
}
