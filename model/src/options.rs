use serde::{Deserialize, Serialize};

use crate::{
    bounds::{
        MAX_BITS_PER_SECOND, MAX_BYTES_PER_FLOW, MAX_EXEMPT_BYTES, MAX_PACKETS_PER_SECOND, ONE_IN_FLOWS, TRUNCATE_BYTES,
    },
    filter::{Filter, FilterError},
    quantity::Quantity,
};

/// Which frames of the targets are mirrored, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(kube::KubeSchema))]
pub struct MirrorOptions {
    /// Which frames are mirrored. Unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,

    /// How much of each frame is mirrored. Unset: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Truncate>,

    /// Mirrors a sample of the flows. Unset: all flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,

    /// The most that is mirrored per pod. Unset: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,

    /// Mirrors each flow between two tapped pods once instead of twice: {}. Unset: each tapped pod mirrors all of its flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplicate: Option<Deduplicate>,

    /// What happens to mirrored frames that exceed the path MTU to their destination: Fragment sends them in IP fragments,
    /// Truncate shortens them. TCP segments are always made to fit; this is about full-size frames of other protocols.
    #[serde(default, skip_serializing_if = "Oversize::is_fragment")]
    pub oversize: Oversize,
}

/// How much of each frame is mirrored. The lengths in its headers stay as they are, so that readers show the original ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(
    feature = "schema",
    derive(kube::KubeSchema),
    x_kube(validation = Rule::new("has(self.bytes) != (has(self.headersOnly) && self.headersOnly)")
        .message("set exactly one of truncate.bytes and truncate.headersOnly: true; leave truncate out to mirror whole frames"))
)]
pub struct Truncate {
    /// Mirrors the first bytes of each frame, counted from the Ethernet header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<i32>"),
        x_kube(validation = Rule::new("self >= 14 && self <= 65535")
            .message("truncate.bytes must be between 14 (the Ethernet header) and 65535"))
    )]
    pub bytes: Option<u32>,

    /// Mirrors all headers up to that of TCP, UDP, SCTP or ICMP, with TCP's options, and no payload.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub headers_only: bool,

    /// Bytes of payload of each direction of a flow. Frames that begin within them are not truncated, so that names and requests
    /// survive: those of TLS and HTTP are at the beginning of a connection. Neither are those of port 53 (DNS). Unset or 0: every frame
    /// is truncated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<i32>"),
        x_kube(validation = Rule::new("self >= 0 && self <= 1048576")
            .message("truncate.exemptBytes must be between 0 (every frame is truncated) and 1048576 (1 MiB)"))
    )]
    pub exempt_bytes: Option<u32>,
}

/// Mirrors a sample of the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(kube::KubeSchema))]
pub struct Sample {
    /// Mirrors one in this many flows, whole and in both directions. All nodes choose the same flows. 1: all flows.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "i32"),
        x_kube(validation = Rule::new("self >= 1 && self <= 1000000")
            .message("sample.oneInFlows must be between 1 (all flows) and 1000000"))
    )]
    pub one_in_flows: u32,
}

/// The most that is mirrored of a pod. Frames above a limit are counted and not mirrored; the pod's own frames are not affected. Limits
/// are Kubernetes quantities such as 100M or 64Ki.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(
    feature = "schema",
    derive(kube::KubeSchema),
    x_kube(validation = Rule::new("(has(self.bitsPerSecond) && !string(self.bitsPerSecond).matches('^[0.]+[kMGTi]*$')) || (has(self.packetsPerSecond) && !string(self.packetsPerSecond).matches('^[0.]+[kMGTi]*$')) || (has(self.bytesPerFlow) && !string(self.bytesPerFlow).matches('^[0.]+[kMGTi]*$'))")
        .message("set limit.bitsPerSecond, limit.packetsPerSecond or limit.bytesPerFlow to more than 0; leave limit out to mirror without a limit"))
)]
pub struct Limit {
    /// Bits of frames per second, both directions together, at most 100G. Unset or 0: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        x_kube(validation = Rule::new("string(self).matches('^[0-9]{1,20}([.][0-9]{1,20})?(k|M|G|T|Ki|Mi|Gi|Ti)?$') && !quantity(string(self)).isGreaterThan(quantity('100G'))")
            .message("limit.bitsPerSecond must be between 0 (no limit) and 100G (100 Gbit/s), for example 100M"))
    )]
    pub bits_per_second: Option<Quantity>,

    /// Frames per second, both directions together, at most 1G. Unset or 0: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        x_kube(validation = Rule::new("string(self).matches('^[0-9]{1,20}([.][0-9]{1,20})?(k|M|G|T|Ki|Mi|Gi|Ti)?$') && !quantity(string(self)).isGreaterThan(quantity('1G'))")
            .message("limit.packetsPerSecond must be between 0 (no limit) and 1G, for example 10k"))
    )]
    pub packets_per_second: Option<Quantity>,

    /// Bytes of payload of each direction of a flow, at most 1Gi, for example 1Mi. After that, the flow is cut off: only the headers of
    /// its handshake and end, and of one frame per second and direction, are mirrored. Unset or 0: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        x_kube(validation = Rule::new("string(self).matches('^[0-9]{1,20}([.][0-9]{1,20})?(k|M|G|T|Ki|Mi|Gi|Ti)?$') && !quantity(string(self)).isGreaterThan(quantity('1Gi'))")
            .message("limit.bytesPerFlow must be between 0 (no limit) and 1Gi, for example 1Mi"))
    )]
    pub bytes_per_flow: Option<Quantity>,
}

/// Mirrors each flow between two pods that this tap mirrors at one end only: that with the higher port, which is usually the
/// client's. All other flows are mirrored in full. With direction Ingress or Egress, each frame is mirrored once anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(kube::KubeSchema))]
pub struct Deduplicate {
    /// At how many ends TCP segments with SYN, and frames of port 53 (DNS), are mirrored. With Both, a reader can join the address of a
    /// Service, which the client sees, with the pod that answered.
    #[serde(default, skip_serializing_if = "Handshakes::is_once")]
    pub handshakes: Handshakes,
}

/// At how many ends the handshake of a flow is mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Handshakes {
    /// At the end that mirrors the flow.
    #[default]
    Once,
    /// At both.
    Both,
}

/// What happens to a mirrored frame that exceeds the path MTU and cannot be segmented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Oversize {
    /// Sent in IP fragments.
    #[default]
    Fragment,
    /// Truncated to what fits.
    Truncate,
}

/// Why mirror options are invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The filter is invalid.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Both forms of truncation, or none.
    #[error("set exactly one of truncate.bytes and truncate.headersOnly: true")]
    Truncate,
    /// A number outside of its range.
    #[error("{field} must be between {min} and {max}, not {number}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        number: u64,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
}

impl MirrorOptions {
    /// Whether every frame is mirrored as it is.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The expression of the filter.
    #[must_use]
    pub fn expression(&self) -> Option<&str> {
        self.filter.as_ref()?.expression.as_deref()
    }

    /// One in how many flows is mirrored; 1 without a sample.
    #[must_use]
    pub fn one_in_flows(&self) -> u32 {
        self.sample.map_or(1, |sample| sample.one_in_flows)
    }

    /// Payload bytes of each direction of a flow after which it is cut off, at most [`MAX_BYTES_PER_FLOW`]; 0 if it never is.
    #[must_use]
    pub fn bytes_per_flow(&self) -> u32 {
        let bytes = self.limit.and_then(|limit| limit.bytes_per_flow).unwrap_or_default().get();
        u32::try_from(bytes).unwrap_or(u32::MAX).min(MAX_BYTES_PER_FLOW)
    }

    /// Payload bytes of each direction of a flow that are not truncated; 0 if there are none.
    #[must_use]
    pub fn exempt_bytes(&self) -> u32 {
        self.truncate.and_then(|truncate| truncate.exempt_bytes).unwrap_or_default()
    }

    /// Whether the programs have to remember how much of each flow they saw.
    #[must_use]
    pub fn track_flows(&self) -> bool {
        self.bytes_per_flow() > 0 || self.exempt_bytes() > 0
    }

    /// Whether everything is within its bounds and consistent. The API server checks most of it, too.
    pub fn check(&self) -> Result<(), OptionsError> {
        // Named one by one, so that a field that is added cannot be forgotten here.
        let Self { filter, truncate, sample, limit, deduplicate: _, oversize: _ } = self;
        if let Some(filter) = filter {
            filter.check()?;
        }
        match truncate {
            None | Some(Truncate { bytes: None, headers_only: true, .. }) => {}
            Some(Truncate { bytes: Some(bytes), headers_only: false, .. }) => {
                let (min, max) = TRUNCATE_BYTES.into_inner();
                within("truncate.bytes", *bytes, min, max)?;
            }
            Some(_) => return Err(OptionsError::Truncate),
        }
        within("truncate.exemptBytes", self.exempt_bytes(), 0, MAX_EXEMPT_BYTES)?;
        if let Some(Sample { one_in_flows }) = sample {
            let (min, max) = ONE_IN_FLOWS.into_inner();
            within("sample.oneInFlows", *one_in_flows, min, max)?;
        }
        if let Some(Limit { bits_per_second, packets_per_second, bytes_per_flow }) = limit {
            let number = |quantity: &Option<Quantity>| quantity.unwrap_or_default().get();
            within("limit.bitsPerSecond", number(bits_per_second), 0, MAX_BITS_PER_SECOND)?;
            within("limit.packetsPerSecond", number(packets_per_second), 0, MAX_PACKETS_PER_SECOND)?;
            within("limit.bytesPerFlow", number(bytes_per_flow), 0, MAX_BYTES_PER_FLOW.into())?;
        }
        Ok(())
    }
}

impl Handshakes {
    /// Whether it is the default.
    #[must_use]
    pub fn is_once(&self) -> bool {
        *self == Self::Once
    }
}

impl Oversize {
    /// Whether it is the default.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        *self == Self::Fragment
    }
}

fn within<N: Into<u64>>(field: &'static str, number: N, min: N, max: N) -> Result<(), OptionsError> {
    let (number, min, max) = (number.into(), min.into(), max.into());
    if (min..=max).contains(&number) { Ok(()) } else { Err(OptionsError::Range { field, number, min, max }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<(), OptionsError> {
        serde_json::from_str::<MirrorOptions>(json).expect("mirror options").check()
    }

    #[test]
    fn bounds() {
        assert_eq!(check("{}"), Ok(()));
        assert_eq!(
            check(
                r#"{"truncate": {"bytes": 128}, "sample": {"oneInFlows": 10}, "limit": {"bitsPerSecond": "100M", "bytesPerFlow": "1Gi"}, "deduplicate": {"handshakes": "Both"}}"#
            ),
            Ok(())
        );
        assert_eq!(check(r#"{"truncate": {}}"#), Err(OptionsError::Truncate));
        assert_eq!(check(r#"{"truncate": {"bytes": 20, "headersOnly": true}}"#), Err(OptionsError::Truncate));
        for (json, field) in [
            (r#"{"truncate": {"bytes": 13}}"#, "truncate.bytes"),
            (r#"{"sample": {"oneInFlows": 0}}"#, "sample.oneInFlows"),
            (r#"{"limit": {"bitsPerSecond": "101G"}}"#, "limit.bitsPerSecond"),
            (r#"{"limit": {"packetsPerSecond": 1000000001}}"#, "limit.packetsPerSecond"),
            (r#"{"limit": {"bytesPerFlow": "1025Mi"}}"#, "limit.bytesPerFlow"),
            (r#"{"truncate": {"headersOnly": true, "exemptBytes": 1048577}}"#, "truncate.exemptBytes"),
        ] {
            let error = check(json).expect_err(json).to_string();
            assert!(error.starts_with(&format!("{field} must be between ")), "{error}");
        }
    }

    #[test]
    fn defaults_are_not_written() {
        let json = serde_json::to_string(&MirrorOptions::default()).expect("mirror options");
        assert_eq!(json, "{}");
        assert!(serde_json::from_str::<MirrorOptions>(r#"{"bytesPerFlow": 1}"#).is_err());
        let json = serde_json::to_string(&Deduplicate::default()).expect("deduplication");
        assert_eq!(json, "{}");
    }

    #[test]
    fn only_what_depends_on_flows_tracks_them() {
        let track = |json: &str| serde_json::from_str::<MirrorOptions>(json).expect("mirror options").track_flows();
        for json in [
            "{}",
            r#"{"limit": {"bitsPerSecond": "1M", "bytesPerFlow": 0}, "truncate": {"headersOnly": true, "exemptBytes": 0}}"#,
            r#"{"sample": {"oneInFlows": 2}, "deduplicate": {"handshakes": "Both"}}"#,
        ] {
            assert!(!track(json), "{json}");
        }
        assert!(
            track(r#"{"limit": {"bytesPerFlow": 1}}"#) && track(r#"{"truncate": {"bytes": 64, "exemptBytes": 1}}"#)
        );
    }
}
