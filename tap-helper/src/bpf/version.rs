//! What only a kernel's version tells.

use std::fs;

/// Major, minor and patch number.
type Version = (u32, u32, u32);

/// Stable releases that have `bpf: Fix a segment issue when downgrading gso_size` (fa5ef655615a, in 6.11), or later ones.
const SHORTENS_LISTS: [Version; 6] = [(6, 10, 5), (6, 6, 46), (6, 1, 105), (5, 15, 166), (5, 10, 225), (5, 4, 283)];

/// Whether `bpf_skb_adjust_room` joins a superframe's list of frames before it makes their segments shorter. False if unknown.
pub(super) fn shortens_lists() -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    version(&read("osrelease"), &read("version")).is_some_and(has_fix)
}

fn has_fix((major, minor, patch): Version) -> bool {
    let same = SHORTENS_LISTS.iter().find(|known| (known.0, known.1) == (major, minor));
    (major, minor) >= (6, 11) || same.is_some_and(|known| patch >= known.2)
}

/// The release of uname(2); Debian has 0 there for the patch number, and the real one in the version's text.
fn version(release: &str, text: &str) -> Option<Version> {
    let found = parse(release)?;
    let told = text.split_once("Debian ").and_then(|(_, rest)| parse(rest));
    Some(told.filter(|told| (told.0, told.1) == (found.0, found.1)).unwrap_or(found))
}

fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_and_the_text_of_debian_are_understood() {
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
    fn what_is_not_known_to_be_fixed_is_not() {
        for (version, fixed) in [
            ((6, 18, 0), true),
            ((6, 11, 0), true),
            ((6, 10, 4), false),
            ((6, 1, 192), true),
            ((6, 1, 0), false),
            ((5, 15, 165), false),
            ((5, 14, 999), false),
            ((5, 10, 230), true),
        ] {
            assert_eq!(has_fix(version), fixed, "{version:?}");
        }
    }
}
