use aya::maps::{MapData, MapError, PerCpuArray};
use serde::Serialize;

use super::{
    constants::{
        COUNTERS, DEDUPLICATED, EGRESS, EXPIRED, FAILED, FILTERED, FORGED, INGRESS, MIRRORED, OUTCOMES, OVERSIZED,
        PROBES, RATE_LIMITED, SAMPLED_OUT, SENDERS, SENT, TRUNCATED,
    },
    layout::Counter,
};

/// Frames and bytes as on the wire: a GSO packet counts as the frames that it is segmented into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the line above")]
pub struct Count {
    pub frames: u64,
    pub bytes: u64,
}

/// The frames of one direction, by outcome. Each frame has exactly one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionCounters {
    /// Mirrored.
    pub mirrored: Count,
    /// Not selected by the filter.
    pub filtered: Count,
    /// Of a flow outside of the sample.
    pub sampled_out: Count,
    /// Above the rate limit.
    pub rate_limited: Count,
    /// Mirrored by the peer.
    pub deduplicated: Count,
    /// After the deadline, but otherwise mirrored.
    pub expired: Count,
}

impl DirectionCounters {
    /// All frames that the interface saw in this direction.
    #[must_use]
    pub fn seen(&self) -> Count {
        sum(&[self.matched(), self.filtered])
    }

    /// The frames that the filter selects.
    #[must_use]
    pub fn matched(&self) -> Count {
        sum(&[self.mirrored, self.sampled_out, self.rate_limited, self.deduplicated, self.expired])
    }
}

fn sum(counts: &[Count]) -> Count {
    let sum = |part: fn(&Count) -> u64| counts.iter().map(part).sum();
    Count { frames: sum(|count| count.frames), bytes: sum(|count| count.bytes) }
}

/// All counters of a tap on a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Frames that entered the pod.
    pub ingress: DirectionCounters,
    /// Frames that left the pod.
    pub egress: DirectionCounters,
    /// Mirrored frames that were truncated because the tap says so; the bytes are those removed.
    pub truncated: Count,
    /// Mirrored frames that did not fit the underlay and could not be segmented: fragmented or truncated, as the tap says.
    pub oversized: Count,
    /// Mirrored frames that were dropped because they could not be clamped or truncated.
    pub failed: Count,
    /// Frames that reached the sender device although no classifier selected them, and were dropped there.
    pub forged: Count,
    /// Mirrored frames that left through the sender device, as often as they were segmented, once for all destinations.
    pub sent: Count,
    /// Probes.
    pub probes: Count,
}

/// Reads a sender's counters of all CPUs.
pub(super) fn read(map: &PerCpuArray<MapData, Counter>, classid: u32) -> Result<Counters, MapError> {
    let count = |key: u32| {
        let values = map.get(&(classid % SENDERS * COUNTERS + key), 0)?;
        let sum = |part: fn(&Counter) -> u64| values.iter().map(part).sum();
        Ok::<_, MapError>(Count { frames: sum(|value| value.frames), bytes: sum(|value| value.bytes) })
    };
    let direction = |direction: u32| {
        let outcome = |outcome| count(direction * OUTCOMES + outcome);
        Ok::<_, MapError>(DirectionCounters {
            mirrored: outcome(MIRRORED)?,
            filtered: outcome(FILTERED)?,
            sampled_out: outcome(SAMPLED_OUT)?,
            rate_limited: outcome(RATE_LIMITED)?,
            deduplicated: outcome(DEDUPLICATED)?,
            expired: outcome(EXPIRED)?,
        })
    };
    Ok(Counters {
        ingress: direction(INGRESS)?,
        egress: direction(EGRESS)?,
        truncated: count(TRUNCATED)?,
        oversized: count(OVERSIZED)?,
        failed: count(FAILED)?,
        forged: count(FORGED)?,
        sent: count(SENT)?,
        probes: count(PROBES)?,
    })
}
