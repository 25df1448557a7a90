//! Loading images into the nodes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::progress::{say, step};
use crate::{command, image, member, state::Lab};

/// Loads an image into all nodes that are up, and keeps it for those that are started later.
pub fn load(lab: &Lab, archive: &Path) -> Result<()> {
    let name = image::name_in(archive)?;
    let _lock = lab.lock()?;
    // A copy, because the original may be missing or incomplete when a node is started.
    let kept = lab.path("images/loaded").join(format!("{}.tar", file_name(&name)));
    fs::create_dir_all(lab.path("images/loaded"))?;
    let partial = kept.with_extension("partial");
    fs::copy(archive, &partial).with_context(|| format!("cannot copy {}", archive.display()))?;
    fs::rename(&partial, &kept)?;
    let nodes = member::running_nodes(lab);
    ensure!(!nodes.is_empty(), "no node is up; start the lab with: lab up");
    for node in nodes {
        step(format!("loading {name} into {node}"), || {
            let mut import = Command::new(lab.bin("lab"));
            import
                .env("LAB_DIR", &lab.root)
                .args(["exec", &node, "--"])
                .arg(lab.bin("lab"))
                .args(["import", &node])
                .arg(&kept);
            command::run(&mut import).map(drop)
        })?;
    }
    say(&format!("pods can use {name} with imagePullPolicy: Never"));
    Ok(())
}

fn file_name(image: &str) -> String {
    image.replace(['/', ':', '@'], "_")
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_image_becomes_one_file() {
        assert_eq!(super::file_name("podtap.dev/podtap:0.1.0"), "podtap.dev_podtap_0.1.0");
    }
}
