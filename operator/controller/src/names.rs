//! Names, labels and identifiers of the objects that the controller creates.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podtap_model::{InterfaceName, Uid, Vni};

/// Value of `app.kubernetes.io/name` on everything of this product.
pub const PRODUCT: &str = "podtap";
/// Value of `app.kubernetes.io/component` on helper pods.
pub const HELPER: &str = "helper";
/// Value of `app.kubernetes.io/component` on the collector's pods.
pub const COLLECTOR: &str = "collector";
/// Container of the collector's pods that sends frames to sensors.
pub const SENSOR: &str = "sensor";
/// Value of `app.kubernetes.io/component` on the pod that uninstalls.
pub const UNINSTALL: &str = "uninstall";
/// Field manager of our writes, and reporter of our events.
pub const CONTROLLER: &str = "podtap-controller";
/// `ConfigMap` in the controller's namespace that records which nodes are still to be swept.
pub const SWEEP: &str = "podtap-sweep";
/// Lease in the controller's namespace.
pub const LEASE: &str = "podtap-controller";
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Annotation with the hash of the template that a helper pod was created from.
pub const TEMPLATE_HASH: &str = "podtap.dev/template-hash";

/// Longest DNS label, and longest label value.
const MAX_LABEL: usize = 63;
/// Hexadecimal digits of the hash in a shortened name.
const DIGITS: usize = 10;
/// Characters that the API server appends to `metadata.generateName` (k8s.io/apiserver, `pkg/storage/names`).
const GENERATED: usize = 5;

/// The beginning of the names of the helper pods of `node`, for people. The API server appends random characters: a pod with the name
/// of its predecessor would keep those waiting who wait for that one to be deleted.
pub fn helper_pod_prefix(node: &str) -> String {
    let prefix = format!("{PRODUCT}-{HELPER}-");
    let room = MAX_LABEL - prefix.len() - 1 - GENERATED;
    let readable: String =
        node.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(room).collect();
    format!("{prefix}{}-", readable.trim_end_matches('-'))
}

/// The name of the account and of the role of the agent of `node`, as long as it has the `NodeTap` with this UID.
pub fn agent_account(node: &str, node_tap_uid: &str) -> String {
    let readable: String = node.chars().take(MAX_LABEL).collect();
    format!("{PRODUCT}-agent-{}-{}", readable.trim_end_matches(['-', '.']), short_hash(node_tap_uid.as_bytes()))
}

/// A label value that identifies `node`: its name if that fits.
pub fn node_label(node: &str) -> String {
    if node.len() <= MAX_LABEL {
        return node.to_owned();
    }
    let readable: String = node.chars().take(MAX_LABEL - 1 - DIGITS).collect();
    format!("{}-{}", readable.trim_end_matches(['-', '.', '_']), short_hash(node.as_bytes()))
}

/// Name of a receiver's interface if the spec has none.
pub fn interface(vni: Vni) -> InterfaceName {
    format!("ptap{vni}").parse().expect("a VNI has at most eight digits")
}

/// The UID of an object. The API server gives every object a valid one; anything else becomes one that no object has.
pub fn uid(meta: &ObjectMeta) -> Uid {
    let uid = meta.uid.as_deref().and_then(|uid| uid.parse().ok());
    uid.unwrap_or_else(|| "unknown".parse().expect("the constant is a valid UID"))
}

/// A hash that is the same in all builds and on all machines (FNV-1a), as hexadecimal digits.
///
/// Not collision-resistant: a user who may name nodes can make two names collide, and has better ways to do harm.
pub fn short_hash(bytes: &[u8]) -> String {
    // The high bits of FNV are mixed better.
    format!("{:0width$x}", fnv(bytes) >> (64 - 4 * DIGITS), width = DIGITS)
}

/// A hash of which every bit depends on every byte, the same in all builds and on all machines.
pub fn hash(bytes: &[u8]) -> u64 {
    // The finalizer of MurmurHash3, for the low bits.
    let hash = fnv(bytes);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_labels() {
        assert_eq!(helper_pod_prefix("n1"), "podtap-helper-n1-");
        for node in ["n1", "ip-10-0-0-1.eu-central-1.compute.internal", &"very-long.".repeat(25), "a.", "-"] {
            let name = format!("{}x7x7x", helper_pod_prefix(node));
            assert!(name.len() <= 63, "the API server would shorten it: {name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
            assert!(node_label(node).len() <= 63);
        }
    }

    #[test]
    fn nodes_that_look_alike_have_different_labels() {
        let long = "x".repeat(200);
        assert_ne!(node_label(&format!("{long}1")), node_label(&format!("{long}2")));
    }
}
