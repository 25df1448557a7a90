//! Names of objects that the controller makes.

/// Value of `app.kubernetes.io/name` on everything of this product.
pub const PRODUCT: &str = "podtap";
/// Value of `app.kubernetes.io/component` on helper pods.
pub const HELPER: &str = "helper";
/// Who the API server's field managers and events say that writes.
pub const CONTROLLER: &str = "podtap-controller";
/// `ConfigMap` of the controller's namespace that records which tap has which VNI.
pub const CLAIMS: &str = "podtap-vni-claims";
/// Lease of the controller's namespace.
pub const LEASE: &str = "podtap-controller";

/// Longest name that is a DNS label, and longest label value.
const MAX_LABEL: usize = 63;
/// Hexadecimal digits of the hash in a shortened name.
const DIGITS: usize = 10;

/// The name of the helper pod of `node`: always the same one, a DNS label, and different for different nodes.
///
/// A hash of the whole name is part of it, since what is readable of the node's name may be cut, and its dots become
/// dashes (`a.b` and `a-b` are two nodes).
pub fn helper_pod(node: &str) -> String {
    let prefix = format!("{PRODUCT}-{HELPER}-");
    let room = MAX_LABEL - prefix.len() - 1 - DIGITS;
    let readable: String =
        node.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(room).collect();
    format!("{prefix}{}-{}", readable.trim_end_matches('-'), short_hash(node.as_bytes()))
}

/// A label value that stands for `node`: the name itself where it fits.
pub fn node_label(node: &str) -> String {
    if node.len() <= MAX_LABEL {
        return node.to_owned();
    }
    let readable: String = node.chars().take(MAX_LABEL - 1 - DIGITS).collect();
    format!("{}-{}", readable.trim_end_matches(['-', '.', '_']), short_hash(node.as_bytes()))
}

/// Name of a receiver device for which the user wished none.
pub fn interface(vni: i64) -> String {
    format!("ptap{vni}")
}

/// A hash that stays the same across builds and machines (FNV-1a), as hexadecimal digits.
///
/// Not for secrets: whoever may name nodes can make two names collide, and has better ways to do harm.
pub fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    // The high bits of FNV are the better mixed ones.
    format!("{:0width$x}", hash >> (64 - 4 * DIGITS), width = DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_labels() {
        assert_eq!(helper_pod("n1"), "podtap-helper-n1-08b37b07b5");
        for node in ["n1", "ip-10-0-0-1.eu-central-1.compute.internal", &"very-long.".repeat(25), "a.", "-"] {
            let name = helper_pod(node);
            assert!(name.len() <= 63 && !name.ends_with('-'), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
            assert!(node_label(node).len() <= 63);
        }
    }

    #[test]
    fn nodes_that_look_alike_have_different_pods() {
        assert_ne!(helper_pod("a.b"), helper_pod("a-b"));
        let long = "x".repeat(200);
        assert_ne!(helper_pod(&format!("{long}1")), helper_pod(&format!("{long}2")));
        assert_ne!(node_label(&format!("{long}1")), node_label(&format!("{long}2")));
    }
}
