//! What only the version of the kernel tells.

use std::fs;

/// Major, minor and patch number.
type Version = (u32, u32, u32);

/// Releases of stable series with `bpf: Fix a segment issue when downgrading gso_size` (fa5ef655615a, in 6.11).
const FIXED: [Version; 4] = [(6, 10, 5), (6, 6, 46), (6, 1, 105), (5, 15, 166)];

/// Whether `bpf_skb_adjust_room` linearizes GSO packets with a `frag_list` before it reduces `gso_size`. On other kernels the programs do,
/// or `skb_segment` would hit a `BUG_ON`. False if unknown.
#[must_use]
pub fn frag_list_safe() -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    version(&read("osrelease"), &read("version")).is_some_and(is_fixed)
}

fn is_fixed((major, minor, patch): Version) -> bool {
    let series = FIXED.iter().find(|fixed| (fixed.0, fixed.1) == (major, minor));
    (major, minor) >= (6, 11) || series.is_some_and(|fixed| patch >= fixed.2)
}

/// The release of uname(2). Debian has 0 for the patch number there, and the real one in the version.
fn version(release: &str, version: &str) -> Option<Version> {
    let release = parse(release)?;
    let debian = version.split_once("Debian ").and_then(|(_, rest)| parse(rest));
    Some(debian.filter(|debian| (debian.0, debian.1) == (release.0, release.1)).unwrap_or(release))
}

fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_releases_and_debian_versions() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-09-01)";
        for (release, text, expected) in [
            ("6.18.44-fc-v595", "#1 SMP", Some((6, 18, 44))),
            ("6.1.0-56-amd64", debian, Some((6, 1, 192))),
            ("6.11.0-19-generic", "#19-Ubuntu SMP", Some((6, 11, 0))),
            ("5.14.0-503.el9.x86_64", "#1 SMP", Some((5, 14, 0))),
            ("6.12-rc1", debian, Some((6, 12, 0))),
            ("", "", None),
        ] {
            assert_eq!(version(release, text), expected, "{release}");
        }
    }

    #[test]
    fn kernels_without_a_known_fix_are_not_fixed() {
        for (version, fixed) in [
            ((6, 18, 0), true),
            ((6, 11, 0), true),
            ((6, 10, 4), false),
            ((6, 1, 192), true),
            ((6, 1, 0), false),
            ((5, 15, 165), false),
            ((5, 14, 999), false),
            ((5, 15, 166), true),
        ] {
            assert_eq!(is_fixed(version), fixed, "{version:?}");
        }
    }
}
