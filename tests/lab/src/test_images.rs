//! The lab's own two images: the pause container, and a shell with tools for tests.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::image::{self, Image, Source};
use crate::{command, prerequisites::find_program, state::Lab};

/// The commands of `podtap.dev/busybox:1` that tests call.
const TOOLS: [&str; 33] = [
    "arping", "cat", "cut", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "httpd", "id", "ip",
    "kill", "ls", "mkdir", "nc", "nslookup", "ping", "printf", "ps", "sed", "seq", "sh", "sleep", "sync", "tail",
    "timeout", "top", "true", "wc", "wget",
];

/// Writes both archives, unless they exist and are newer than their sources.
pub fn make(lab: &Lab) -> Result<()> {
    let directory = lab.path("images");
    fs::create_dir_all(&directory)?;
    let source = lab.root.join("tests/lab/pause.c");
    let busybox = find_program("busybox").context("busybox is not installed")?;
    let (pause_archive, busybox_archive) = (directory.join("pause.tar"), directory.join("busybox.tar"));
    let program = std::env::current_exe()?;
    if is_newer(&pause_archive, &[&source, &program]) && is_newer(&busybox_archive, &[&busybox, &program]) {
        return Ok(());
    }
    let pause = directory.join("pause");
    command::run(Command::new("gcc").args(["-static", "-Os", "-s", "-o"]).arg(&pause).arg(source))?;
    let image = Image {
        name: "podtap.dev/pause:1".into(),
        entrypoint: vec!["/bin/pause".into()],
        files: [("bin/pause".into(), Source::File(pause))].into(),
        ..Image::default()
    };
    image::write(&image, &pause_archive)?;

    let links = TOOLS.map(|tool| (format!("bin/{tool}"), Source::Link("/bin/busybox".into())));
    let image = Image {
        name: "podtap.dev/busybox:1".into(),
        entrypoint: vec!["/bin/sh".into()],
        files: links.into_iter().chain([("bin/busybox".into(), Source::File(busybox))]).collect(),
        ..Image::default()
    };
    image::write(&image, &busybox_archive)
}

fn is_newer(file: &Path, sources: &[&Path]) -> bool {
    // The time of the last status change: packages set the modification time to when they were built.
    let time = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.ctime(), metadata.ctime_nsec()));
    time(file).is_some_and(|made| sources.iter().all(|source| time(source).is_some_and(|changed| changed < made)))
}
