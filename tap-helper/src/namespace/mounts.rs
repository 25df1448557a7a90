use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStringExt as _, fs::OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use super::process;

/// Where network namespaces are mounted on the node, as by `ip netns`, containerd and CRI-O: that keeps them without a process.
///
/// The mounts are those of process 1. The paths lead through its root directory, since the helper has one of its own.
pub(super) fn mounted() -> io::Result<Vec<PathBuf>> {
    let root = PathBuf::from(process::path(1, "root"));
    let mounts = fs::read_to_string(process::path(1, "mountinfo"))?;
    Ok(network_namespaces(&mounts).map(|path| root.join(path.strip_prefix("/").unwrap_or(&path))).collect())
}

/// The mount points of network namespaces in a mount table (`proc_pid_mountinfo(5)`).
fn network_namespaces(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (root, path) = (fields.nth(3)?, fields.next()?);
        let kind = fields.skip_while(|field| *field != "-").nth(1)?;
        (kind == "nsfs" && root.starts_with("net:[")).then(|| unescaped(path))
    })
}

/// A path with the characters that the table has as three octal digits.
fn unescaped(path: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, next @ ..] = rest {
        let code = next.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\');
        bytes.push(code.unwrap_or(*first));
        rest = &next[if code.is_some() { 3 } else { 0 }..];
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Opens a mounted namespace; `InvalidInput` if it is something else, such as another mount above it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Without opening what it is, which could have effects.
    let found = OpenOptions::new().read(true).custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits()).open(path)?;
    if fstatfs(&found)?.filesystem_type() != NSFS_MAGIC {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_network_namespaces_are_found() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
            301 24 0:4 net:[4026532295] /run/netns/cni-1\\040a rw shared:160 master:3 - nsfs nsfs rw\n\
            302 24 0:4 net:[4026532296] /var/run/netns/b rw - nsfs nsfs rw\n\
            303 24 0:4 mnt:[4026532297] /run/snapd/ns/x.mnt rw - nsfs nsfs rw\n\
            304 24 0:4 net:[4026532298] /tmp/x rw - tmpfs tmpfs rw\n\
            malformed\n";
        let found: Vec<PathBuf> = network_namespaces(mounts).collect();
        assert_eq!(found, ["/run/netns/cni-1 a", "/var/run/netns/b"].map(PathBuf::from));
    }

    #[test]
    fn only_namespaces_are_opened() {
        for path in ["/proc/self/status", "/dev/null"] {
            assert_eq!(open(Path::new(path)).expect_err("it is none").kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }
}
