use std::{collections::BTreeMap, fmt, net::IpAddr, ops::Deref};

use serde::{Deserialize, Serialize};

use crate::bounds::{MAX_INTERFACE_NAME, MAX_UID};

/// The text is not a name or identifier of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// See [`Uid`].
    #[error("{0:?} is not a UID: use 1 to {MAX_UID} letters, digits, '-', '_' or '.'")]
    Uid(String),
    /// See [`InterfaceName`].
    #[error(
        "{0:?} is not a valid interface name: use 1 to {MAX_INTERFACE_NAME} characters of printable ASCII without '/', ':', '%' and space"
    )]
    InterfaceName(String),
    /// See [`ConfigHash`].
    #[error("{0:?} is not a kubernetes.io/config.hash: a kubelet writes 32 lower-case hexadecimal digits")]
    ConfigHash(String),
}

macro_rules! text_type {
    ($name:ident) => {
        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdentityError;

            fn from_str(text: &str) -> Result<Self, IdentityError> {
                Self::try_from(text.to_owned())
            }
        }
    };
}

/// UID of a Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid(String);

text_type!(Uid);

impl TryFrom<String> for Uid {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if (1..=MAX_UID).contains(&text.len()) && is_plain { Ok(Self(text)) } else { Err(IdentityError::Uid(text)) }
    }
}

/// Name of a network interface: printable ASCII that the kernel accepts (`dev_valid_name`, net/core/dev.c) without '%', which it would
/// expand to a number. The kernel takes other bytes, too; schemas count characters and not bytes, and terminals show some as others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

text_type!(InterfaceName);

impl TryFrom<String> for InterfaceName {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        let is_valid = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
        if (1..=MAX_INTERFACE_NAME).contains(&text.len())
            && !matches!(text.as_str(), "." | "..")
            && text.bytes().all(is_valid)
        {
            Ok(Self(text))
        } else {
            Err(IdentityError::InterfaceName(text))
        }
    }
}

/// The hash in the annotation `kubernetes.io/config.hash`, which names the cgroup of a static pod: 128 bits in hexadecimal
/// digits (`applyDefaults`, pkg/kubelet/config/common.go of Kubernetes).
///
/// Users can write the annotation. Anything else, such as the UID of another pod, would turn a tap of their own pod into one of
/// that pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConfigHash(String);

text_type!(ConfigHash);

impl TryFrom<String> for ConfigHash {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        if text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text))
        } else {
            Err(IdentityError::ConfigHash(text))
        }
    }
}

/// The tap that something belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TapReference {
    /// Namespace of the PodTap; empty for a ClusterPodTap.
    pub namespace: String,
    /// Name of the tap.
    pub name: String,
    /// UID of the tap.
    pub uid: Uid,
}

impl TapReference {
    /// Whether it is a ClusterPodTap.
    #[must_use]
    pub fn is_cluster_scoped(&self) -> bool {
        self.namespace.is_empty()
    }
}

/// For people: `PodTap shop/web`, or `ClusterPodTap all`.
impl fmt::Display for TapReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_cluster_scoped() {
            write!(f, "ClusterPodTap {}", self.name)
        } else {
            write!(f, "PodTap {}/{}", self.namespace, self.name)
        }
    }
}

/// A pod of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pod {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: Uid,
    /// What the kubelet calls the pod's cgroup by, where that is not the UID: a static pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<ConfigHash>,
    /// Addresses in the pod's status, primary first. Empty until the kubelet reports them, which is after the first container
    /// has started: the tap does not wait for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub addresses: Vec<IpAddr>,
}

/// What a pod belongs to: one of its owners, or the pod itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Workload {
    /// Kind of the owner, for example `Deployment`.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// API group and version of the kind, for example `apps/v1`. Empty: unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_version: String,
}

/// What receivers of metadata are told of a pod besides its name and its addresses. A field of a later version is ignored: it describes,
/// and restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PodDetails {
    /// Name of the node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it belongs to. Unset: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// Those of its labels that the policy lists (metadataLabels).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names() {
        for valid in ["eth0", "mirror", "a.b", "fifteen-letters", "a~!"] {
            assert!(valid.parse::<InterfaceName>().is_ok(), "{valid}");
        }
        for invalid in
            ["", ".", "..", "a b", "a/b", "a:b", "eth%d", "sixteen-letters-", "a\u{7}", "a\tb", "a\u{7f}", "ü"]
        {
            assert!(invalid.parse::<InterfaceName>().is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn uids() {
        assert!("0b1c2d3e-1111-2222-3333-444455556666".parse::<Uid>().is_ok());
        for invalid in ["", "a/b", "../x", "a b", &"x".repeat(MAX_UID + 1)] {
            assert!(invalid.parse::<Uid>().is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn only_a_kubelets_hash_names_a_cgroup() {
        assert!("0123456789abcdef0123456789abcdef".parse::<ConfigHash>().is_ok());
        for invalid in
            ["", "0b1c2d3e-1111-2222-3333-444455556666", "0123456789ABCDEF0123456789ABCDEF", "0123456789abcdef"]
        {
            assert!(invalid.parse::<ConfigHash>().is_err(), "{invalid:?}");
        }
    }
}
