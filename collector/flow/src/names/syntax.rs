//! What may be a name. Others could be anything to the programs that read the map.

use podtap_model::{PodDetails, Workload};

/// Whether this is a subdomain of DNS (RFC 1123) in lower case, as the names of most objects are.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_part = |part: &str| {
        part.bytes().all(|byte| is_plain(byte) || byte == b'-')
            && part.bytes().next().is_some_and(is_plain)
            && part.bytes().last().is_some_and(is_plain)
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Whether this is a name of one part, as those of namespaces are.
#[must_use]
pub fn is_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_name(text)
}

/// Whether an owner has a valid kind, name and version: who creates an object can write there anything.
#[must_use]
pub fn is_workload(workload: &Workload) -> bool {
    let Workload { kind, name, api_version } = workload;
    let is_kind = !kind.is_empty() && kind.len() <= 63 && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_version = api_version.len() <= 253
        && api_version.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'/'));
    is_kind && is_version && is_name(name)
}

/// What is valid of the node and the workload that a tap tells of a pod.
pub(super) fn valid(details: &PodDetails) -> (Option<String>, Option<Workload>) {
    (details.node.clone().filter(|node| is_name(node)), details.workload.clone().filter(is_workload))
}

/// Whether this is how a tap is called, as in `PodTap shop/web`.
pub(super) fn is_tap(text: &str) -> bool {
    match text.split_once(' ') {
        Some(("PodTap", rest)) => {
            rest.split_once('/').is_some_and(|(namespace, name)| is_label(namespace) && is_name(name))
        }
        Some(("ClusterPodTap", name)) => is_name(name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names() {
        for name in ["web", "web-7c9f", "a.b-c.d", "1"] {
            assert!(is_name(name), "{name}");
        }
        for other in ["", "Web", "x\n---\nkind: Pod", "a..b", "-a", "a-", "\"a\"", "a b", "\u{1b}[2J", &"a".repeat(254)]
        {
            assert!(!is_name(other), "{other:?}");
        }
        assert!(is_label("a-1") && !is_label("a.b") && !is_label(&"a".repeat(64)));
        for tap in ["PodTap shop/web", "ClusterPodTap all.pods"] {
            assert!(is_tap(tap), "{tap}");
        }
        for other in
            ["", "PodTap", "PodTap web", "PodTap /web", "PodTap a/b/c", "ClusterPodTap a/b", "Tap a", "ClusterPodTap "]
        {
            assert!(!is_tap(other), "{other}");
        }
    }

    #[test]
    fn what_is_not_valid_is_left_out() {
        let workload = |kind: &str| Workload { kind: kind.into(), name: "web".into(), api_version: "apps/v1".into() };
        let told = |node: &str, kind: &str| {
            valid(&PodDetails { node: Some(node.into()), workload: Some(workload(kind)), ..PodDetails::default() })
        };
        assert_eq!(told("n1", "Deployment"), (Some("n1".into()), Some(workload("Deployment"))));
        assert_eq!(told("n\n1", "x: y"), (None, None));
    }
}
