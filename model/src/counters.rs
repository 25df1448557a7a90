use serde::{Deserialize, Serialize};

/// The counters of a node, read when they were requested.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Counters {
    /// Number of the request that this answers.
    pub request: u64,
    /// One entry per tap and pod, sorted by both. A sender whose counters cannot be read has none.
    #[serde(default)]
    pub senders: Vec<SenderCounters>,
    /// One entry per receiver whose counters can be read, in the order of the desired state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receivers: Vec<ReceiverCounters>,
    /// VXLAN packets for receivers that were dropped because of their source address. Absent without receivers, or if they
    /// cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Count>,
}

/// The counters of one sender since it was created.
///
/// A direction that is not mirrored is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SenderCounters {
    /// UID of the tap.
    pub tap_uid: String,
    /// UID of the pod's API object.
    pub pod_uid: String,
    /// Interface of the pod that is tapped.
    pub interface: String,
    /// Frames that entered the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<DirectionCounters>,
    /// Frames that left the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<DirectionCounters>,
    /// Frames that reached the sender device without being mirrored, and were dropped there: a process in the pod sent them.
    pub forged: Count,
}

/// What a receiver has counted since its program was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReceiverCounters {
    /// UID of the tap.
    pub tap_uid: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Mirrored frames that arrived.
    pub frames: u64,
    /// Mirrored frames that the senders sent, by their probes, and that did not arrive. Up to date once the next probes arrive after
    /// a pause of the traffic; meanwhile too low, never too high.
    pub lost_frames: u64,
}

/// How the frames of one direction were processed. Each has exactly one outcome; `truncated`, `oversized` and `failed` count some of
/// `mirrored` again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectionCounters {
    /// Mirrored, or handed to the sender device in vain.
    pub mirrored: Count,
    /// Not matched by the filter.
    pub filtered: Count,
    /// Of a flow that is not in the sample.
    pub sampled_out: Count,
    /// Above the limit.
    pub rate_limited: Count,
    /// Mirrored by the peer.
    pub deduplicated: Count,
    /// After the deadline of the mirror, which was not renewed in time; otherwise they would be mirrored.
    pub expired: Count,
    /// Of a flow of which enough was mirrored.
    pub cut_off: Count,
    /// Mirrored frames that were truncated as the tap requests; the bytes are those removed.
    pub truncated: Count,
    /// Mirrored frames that exceeded the path MTU and could not be segmented: fragmented or truncated, as the tap requests.
    pub oversized: Count,
    /// Mirrored frames that the sender device did not accept; a GSO packet counts as one. The kernel counts them in 32 bits, and
    /// from 0 when the filter is recreated.
    pub failed: u64,
}

/// Frames and bytes as on the wire: a GSO packet counts as the frames that it becomes.
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
    use crate::{Request, Response};

    fn read_back(message: &Response) -> String {
        let text = serde_json::to_string(message).expect("JSON");
        assert_eq!(serde_json::from_str::<Response>(&text).expect("a message"), *message);
        text
    }

    #[test]
    fn a_request_is_short() {
        let text = serde_json::to_string(&Request::Counters(7)).expect("JSON");
        assert_eq!(text, r#"{"counters":7}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).expect("a message"), Request::Counters(7));
    }

    #[test]
    fn all_64_bits_are_kept() {
        let count = Count { frames: u64::MAX, bytes: u64::MAX - 1 };
        let direction = DirectionCounters {
            mirrored: Count { frames: u64::MAX, bytes: 1 << 53 | 1 },
            filtered: count,
            sampled_out: count,
            rate_limited: count,
            deduplicated: count,
            expired: count,
            cut_off: count,
            truncated: count,
            oversized: count,
            failed: u64::MAX,
        };
        let sender = SenderCounters {
            tap_uid: "t".to_owned(),
            pod_uid: "p".to_owned(),
            interface: "eth0".to_owned(),
            ingress: Some(direction),
            egress: Some(direction),
            forged: count,
        };
        read_back(&Response::Counters(Counters {
            request: u64::MAX,
            senders: vec![sender],
            rejected: Some(count),
            ..Counters::default()
        }));
    }

    #[test]
    fn a_direction_that_is_not_mirrored_is_absent() {
        let ingress = DirectionCounters { failed: 2, ..DirectionCounters::default() };
        let sender = SenderCounters { ingress: Some(ingress), ..SenderCounters::default() };
        let text =
            read_back(&Response::Counters(Counters { request: 1, senders: vec![sender], ..Counters::default() }));
        assert!(!text.contains("egress") && !text.contains("rejected"), "{text}");
        assert!(text.contains(r#""ingress":{"mirrored":{"frames":0,"bytes":0},"filtered":"#), "{text}");
    }
}
