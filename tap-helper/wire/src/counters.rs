use serde::{Deserialize, Serialize};

/// What was counted of the senders that are there, read when the request was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Counters {
    /// Number of the request that this answers.
    pub request: u64,
    /// One entry per tap and pod, sorted by both. One that cannot be read has none.
    #[serde(default)]
    pub senders: Vec<SenderCounters>,
}

/// What was counted of one [`Sender`](crate::Sender) since it was made.
///
/// A direction is missing if it is not copied. Everything but `mirrored` and `failed` is missing if there are no eBPF programs
/// to count it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SenderCounters {
    /// UID of the tap.
    pub tap: String,
    /// UID of the pod's API object.
    pub pod: String,
    /// Interface of the pod that is tapped.
    pub interface: String,
    /// Whether eBPF programs counted. Otherwise the kernel's action that copies did.
    pub ebpf: bool,
    /// Frames that entered the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<DirectionCounters>,
    /// Frames that left the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<DirectionCounters>,
    /// Copies that were cut because the tap says so; the bytes are those cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Count>,
    /// Frames, of copies, that did not fit the wire and could not be made to: fragmented or cut, as the tap says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oversized: Option<Count>,
}

/// What became of the frames of one direction: each of them is in one of these. `failed` is about some of `mirrored`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectionCounters {
    /// Copied, or tried to be.
    pub mirrored: Count,
    /// Not what the filter wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtered: Option<Count>,
    /// Of a flow that is not in the sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_out: Option<Count>,
    /// More than the limit allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_limit: Option<Count>,
    /// Copied at the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplicated: Option<Count>,
    /// Copies of the mirrored frames that the sender device did not take; a superframe of the kernel is one. The kernel counts them with
    /// 32 bits, and from 0 again when the filter is put in place anew.
    pub failed: u64,
}

/// Frames and bytes. Programs count both as on the wire: a superframe of the kernel is the frames that it becomes. The kernel's
/// action counts the bytes of frames that enter the pod without their Ethernet headers, and those of a superframe with one header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the lines above")]
pub struct Count {
    pub frames: u64,
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FromHelper, ToHelper};

    fn read_back(message: &FromHelper) -> String {
        let text = serde_json::to_string(message).expect("it can be written");
        assert_eq!(serde_json::from_str::<FromHelper>(&text).expect("it can be read"), *message);
        text
    }

    #[test]
    fn a_request_is_short() {
        let text = serde_json::to_string(&ToHelper::Counters(7)).expect("it can be written");
        assert_eq!(text, r#"{"counters":7}"#);
        assert_eq!(serde_json::from_str::<ToHelper>(&text).expect("it can be read"), ToHelper::Counters(7));
    }

    #[test]
    fn all_64_bits_pass() {
        let count = Some(Count { frames: u64::MAX, bytes: u64::MAX - 1 });
        let direction = DirectionCounters {
            mirrored: Count { frames: u64::MAX, bytes: 1 << 53 | 1 },
            filtered: count,
            sampled_out: count,
            over_limit: count,
            deduplicated: count,
            failed: u64::MAX,
        };
        let sender = SenderCounters {
            tap: "t".to_owned(),
            pod: "p".to_owned(),
            interface: "eth0".to_owned(),
            ebpf: true,
            ingress: Some(direction),
            egress: Some(direction),
            truncated: count,
            oversized: count,
        };
        read_back(&FromHelper::Counters(Counters { request: u64::MAX, senders: vec![sender] }));
    }

    #[test]
    fn what_is_not_counted_is_absent_and_not_zero() {
        let ingress = DirectionCounters { failed: 2, ..DirectionCounters::default() };
        let sender = SenderCounters { ingress: Some(ingress), ..SenderCounters::default() };
        let text = read_back(&FromHelper::Counters(Counters { request: 1, senders: vec![sender] }));
        for name in ["filtered", "sampledOut", "overLimit", "deduplicated", "egress", "truncated", "oversized"] {
            assert!(!text.contains(name), "{name}: {text}");
        }
        assert!(text.contains(r#""ingress":{"mirrored":{"frames":0,"bytes":0},"failed":2}"#), "{text}");
    }
}
