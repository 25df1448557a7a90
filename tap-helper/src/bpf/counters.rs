use std::fmt;

use aya::maps::{IterableMap as _, Map, MapData, MapError, PerCpuArray};
use serde::Serialize;

use super::{
    BpfError, Maps, ObjectError,
    constants::{
        COUNTERS, CUT_OFF, DEDUPLICATED, DIRECTION_KEYS, EGRESS, EXPIRED, FAILED, FILTERED, FORGED, INGRESS, MIRRORED,
        OVERSIZED, PROBES, RATE_LIMITED, SAMPLED_OUT, SENDERS, SENT, TRUNCATED,
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

/// The frames of one direction. Each has exactly one outcome; `truncated`, `oversized` and `failed` count some of `mirrored` again.
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
    /// Of a flow that is cut off.
    pub cut_off: Count,
    /// Truncated because the tap says so; the bytes are those removed.
    pub truncated: Count,
    /// Did not fit the underlay and could not be segmented: fragmented or truncated, as the tap says.
    pub oversized: Count,
    /// Dropped because they could not be clamped or truncated.
    pub failed: Count,
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
        sum(&[self.mirrored, self.sampled_out, self.rate_limited, self.deduplicated, self.expired, self.cut_off])
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
    /// Frames that reached the sender device although no classifier selected them, and were dropped there.
    pub forged: Count,
    /// Mirrored frames that left through the sender device, as often as they were segmented, once for all destinations.
    pub sent: Count,
    /// Probes.
    pub probes: Count,
}

/// The counters of the senders that share a program set. Holds one descriptor.
pub struct SetCounters(PerCpuArray<MapData, Counter>);

impl fmt::Debug for SetCounters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SetCounters").finish_non_exhaustive()
    }
}

impl SetCounters {
    /// Those of a program in the kernel, whichever process loaded it.
    pub fn adopt(program: u32) -> Result<Self, BpfError> {
        Maps::adopt(program).map(Maps::into_counters)
    }

    /// None if the map has another shape.
    pub(super) fn new(map: Map) -> Option<Self> {
        map.try_into().ok().map(Self)
    }

    pub(super) fn map(&self) -> &MapData {
        self.0.map()
    }

    /// The counters of the sender with a class ID, since it was created. Those of another version may be at other keys.
    pub fn sender(&self, classid: u32) -> Result<Counters, BpfError> {
        if self.0.len() != SENDERS * COUNTERS {
            return Err(ObjectError::Maps.into());
        }
        self.read(classid).map_err(|error| BpfError::aya("read counters", &error))
    }

    /// Reads them on all CPUs.
    fn read(&self, classid: u32) -> Result<Counters, MapError> {
        let count = |key: u32| {
            let values = self.0.get(&(classid % SENDERS * COUNTERS + key), 0)?;
            let sum = |part: fn(&Counter) -> u64| values.iter().map(part).sum();
            Ok::<_, MapError>(Count { frames: sum(|value| value.frames), bytes: sum(|value| value.bytes) })
        };
        let direction = |direction: u32| {
            let of_direction = |key| count(direction * DIRECTION_KEYS + key);
            Ok::<_, MapError>(DirectionCounters {
                mirrored: of_direction(MIRRORED)?,
                filtered: of_direction(FILTERED)?,
                sampled_out: of_direction(SAMPLED_OUT)?,
                rate_limited: of_direction(RATE_LIMITED)?,
                deduplicated: of_direction(DEDUPLICATED)?,
                expired: of_direction(EXPIRED)?,
                cut_off: of_direction(CUT_OFF)?,
                truncated: of_direction(TRUNCATED)?,
                oversized: of_direction(OVERSIZED)?,
                failed: of_direction(FAILED)?,
            })
        };
        Ok(Counters {
            ingress: direction(INGRESS)?,
            egress: direction(EGRESS)?,
            forged: count(FORGED)?,
            sent: count(SENT)?,
            probes: count(PROBES)?,
        })
    }
}
