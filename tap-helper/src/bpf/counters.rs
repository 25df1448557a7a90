use serde::Serialize;

use super::{BpfError, sys::Map};

/// Size of `struct counter`.
pub(super) const COUNTER: usize = 16;

/// Frames and bytes, both as on the wire: a superframe of the kernel is the frames that it becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the line above")]
pub struct Count {
    pub frames: u64,
    pub bytes: u64,
}

/// What happened to the frames of one direction: each of them is in one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionCounters {
    /// Copied.
    pub mirrored: Count,
    /// Not what the filter wants.
    pub filtered: Count,
    /// Of a flow that is not in the sample.
    pub sampled_out: Count,
    /// More than the limit allows.
    pub over_limit: Count,
    /// Copied at the other end.
    pub deduplicated: Count,
}

impl DirectionCounters {
    /// All frames that the interface saw in this direction.
    #[must_use]
    pub fn seen(&self) -> Count {
        self.sum(&[self.mirrored, self.filtered, self.sampled_out, self.over_limit, self.deduplicated])
    }

    /// Those that the filter wants.
    #[must_use]
    pub fn matched(&self) -> Count {
        self.sum(&[self.mirrored, self.sampled_out, self.over_limit, self.deduplicated])
    }

    #[expect(clippy::unused_self, reason = "it reads like what it belongs to")]
    fn sum(&self, parts: &[Count]) -> Count {
        let sum = |part: fn(&Count) -> u64| parts.iter().map(part).sum();
        Count { frames: sum(|count| count.frames), bytes: sum(|count| count.bytes) }
    }
}

/// All counters of a tap on a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Frames that entered the pod.
    pub ingress: DirectionCounters,
    /// Frames that left the pod.
    pub egress: DirectionCounters,
    /// Copies that were cut because the tap says so; the bytes are those cut off.
    pub truncated: Count,
    /// Frames, of copies, that did not fit the wire and could not be made to: fragmented or cut, as the tap says.
    pub oversized: Count,
    /// Copies that were dropped, since they could not be cut.
    pub failed: Count,
}

/// Reads them all, and adds up what the processors counted.
pub(super) fn read(map: &Map) -> Result<Counters, BpfError> {
    // In the order of the enumerations in bpf/maps.h.
    let mut all = [Count::default(); 13];
    for (key, count) in (0..).zip(&mut all) {
        let values = map.get(key).map_err(|errno| BpfError::kernel("read counters", errno))?;
        for value in values.chunks_exact(COUNTER) {
            let word = |at: usize| value[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            count.frames += word(0);
            count.bytes += word(8);
        }
    }
    let direction = |at: usize| DirectionCounters {
        mirrored: all[at],
        filtered: all[at + 1],
        sampled_out: all[at + 2],
        over_limit: all[at + 3],
        deduplicated: all[at + 4],
    };
    Ok(Counters {
        ingress: direction(0),
        egress: direction(5),
        truncated: all[10],
        oversized: all[11],
        failed: all[12],
    })
}
