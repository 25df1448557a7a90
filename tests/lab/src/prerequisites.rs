//! What the machine must have installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, progress};

/// The sign that a package is installed: a file and not the package's name, because a machine may have the same from elsewhere.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// A program found by `PATH` or in the directories for administrators.
    Program(&'static str),
    /// A program that needs no libraries, so that it runs in an image which has none.
    StaticProgram(&'static str),
    /// A file.
    File(&'static str),
}

/// Debian packages and the sign of each.
const PACKAGES: [(&str, Sign); 11] = [
    ("golang-go", Sign::Program("go")),
    ("containerd", Sign::Program("containerd")),
    ("runc", Sign::Program("runc")),
    ("containernetworking-plugins", Sign::File("/usr/lib/cni/bridge")),
    ("iptables", Sign::Program("iptables")),
    ("iproute2", Sign::Program("ip")),
    ("mount", Sign::Program("mount")),
    ("busybox-static", Sign::StaticProgram("busybox")),
    ("gcc", Sign::Program("gcc")),
    ("libc6-dev", Sign::File("/usr/include/unistd.h")),
    ("ca-certificates", Sign::File("/etc/ssl/certs/ca-certificates.crt")),
];

/// Installs what is missing if possible, and fails with the command otherwise.
pub fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!("{} are missing. On Debian or Ubuntu: {}", missing.join(", "), installation(&missing));
    }
    progress::step(format!("installing {}", missing.join(" ")), || {
        apt(&["update", "-qq"])?;
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], missing.as_slice()].concat())
    })
    .with_context(|| format!("install them yourself: {}", installation(&missing)))?;
    let missing = self::missing();
    if !missing.is_empty() {
        bail!("{} were installed, but are not where they are expected", missing.join(", "));
    }
    Ok(())
}

fn installation(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y {}", packages.join(" "))
}

fn apt(words: &[&str]) -> Result<()> {
    // Another process may be installing packages: wait for it.
    let mut apt = Command::new("apt-get");
    apt.args(["-o", "DPkg::Lock::Timeout=300"]).args(words).env("DEBIAN_FRONTEND", "noninteractive");
    command::run(&mut apt).map(drop)
}

fn missing() -> Vec<&'static str> {
    select(|sign| match sign {
        Sign::Program(name) => find_program(name).is_some(),
        Sign::StaticProgram(name) => {
            find_program(name).is_some_and(|path| fs::read(path).is_ok_and(|elf| is_static(&elf)))
        }
        Sign::File(path) => Path::new(path).exists(),
    })
}

fn select(is_there: impl Fn(Sign) -> bool) -> Vec<&'static str> {
    PACKAGES.into_iter().filter(|(_, sign)| !is_there(*sign)).map(|(package, _)| package).collect()
}

/// An ELF program without an interpreter, whose path would be near the start and have this form.
fn is_static(elf: &[u8]) -> bool {
    let head = &elf[..elf.len().min(4096)];
    head.starts_with(b"\x7fELF") && !head.windows(4).any(|bytes| bytes == b"/ld-")
}

/// The path of a program, even if the caller's `PATH` lacks the directories for administrators or the one for Go's own archive.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let others = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(others).map(|directory| directory.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_named_at_once() {
        let missing = select(|sign| !matches!(sign, Sign::Program("runc" | "iptables")));
        assert_eq!(missing, ["runc", "iptables"]);
        assert_eq!(installation(&missing), "apt-get update && apt-get install -y runc iptables");
        assert!(select(|_| true).is_empty());
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(is_static(b"\x7fELF and nothing more"));
        assert!(!is_static(b"\x7fELF\0\0/lib64/ld-linux-x86-64.so.2\0"));
        assert!(!is_static(b"#!/bin/sh"));
    }
}
