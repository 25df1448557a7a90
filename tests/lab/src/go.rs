//! The Go toolchain: the installed one, or one that it has fetched.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, prerequisites::find_program, progress};

/// The newest version that our modules require.
const WANTED: &str = "1.26.0";
/// The first minor version that fetches the version a module requires.
const FETCHES: u32 = 21;

/// The Go to build with. One that is too old for our modules can still fetch a newer one: the module proxy serves toolchains as modules
/// (<https://go.dev/doc/toolchain#select>), with a checksum like any other.
pub fn find() -> Result<PathBuf> {
    let installed = find_program("go").context("go is not installed; see https://go.dev/dl/")?;
    let ask = ["env", "GOVERSION", "GOARCH", "GOMODCACHE"];
    let answer = command::run(at(&installed).args(ask).env("GOTOOLCHAIN", "local").current_dir("/"))?;
    let mut lines = answer.lines();
    let (version, architecture) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if minor(version).is_none_or(|minor| minor >= FETCHES) {
        return Ok(installed);
    }
    let module = format!("golang.org/toolchain@v0.0.1-go{WANTED}.linux-{architecture}");
    let directory = Path::new(lines.next().unwrap_or_default()).join(&module);
    let fetched = directory.join("bin/go");
    if !is_executable(&fetched) {
        progress::step(format!("fetching Go {WANTED}, since {version} is too old"), || {
            command::run(at(&installed).args(["mod", "download", &module]).current_dir("/"))?;
            // Modules have no file permissions. `bin/go` is made executable last, as a sign that everything is complete.
            make_executable(&directory.join(format!("pkg/tool/linux_{architecture}")))?;
            make_executable(&directory.join("bin"))
        })
        .context("a newer Go is on https://go.dev/dl/")?;
    }
    Ok(fetched)
}

/// A call of the Go program `go`.
pub fn at(go: &Path) -> Command {
    let mut command = Command::new(go);
    command.env_remove("GOROOT");
    // Some distributions disable fetching.
    if std::env::var_os("GOTOOLCHAIN").is_none() {
        command.env("GOTOOLCHAIN", "auto");
    }
    command
}

fn minor(version: &str) -> Option<u32> {
    let minor = version.strip_prefix("go1.")?;
    minor[..minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len())].parse().ok()
}

fn is_executable(program: &Path) -> bool {
    fs::metadata(program).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}

fn make_executable(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o555))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read_from_every_form() {
        for (version, expected) in [("go1.19.8", 19), ("go1.21", 21), ("go1.26rc1", 26), ("go1.26.8 X:nodwarf5", 26)] {
            assert_eq!(minor(version), Some(expected), "{version}");
        }
        assert_eq!(minor("devel +abc"), None);
    }

    #[test]
    fn the_wanted_version_suits_all_modules() {
        let newest = ["go.mod", "helm/go.mod", "krew/go.mod", "dns/go.mod"].map(|file| {
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect(file);
            text.lines().find_map(|line| line.strip_prefix("go ")).expect("a go line").to_owned()
        });
        assert!(newest.contains(&WANTED.to_owned()), "{newest:?}");
        assert!(newest.iter().all(|version| minor(&format!("go{version}")) <= minor(&format!("go{WANTED}"))));
    }
}
