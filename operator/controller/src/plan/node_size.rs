//! How many senders a node may have, by its size: the kernel charges their programs and maps to its tap-helper, whose memory limit allows for
//! the most that they can take.

use podtap_model::bounds::{FLOW_TABLE_MEMORY, MAX_SENDERS, SENDER_MEMORY, SENDER_MEMORY_PER_CPU};

use crate::store::node::CachedNode;

/// What the tap-helper takes for itself, in bytes.
const TAP_HELPER: u64 = 64 << 20;

/// The part of a node's allocatable memory that its tap-helper may take.
const SHARE: u64 = 8;

/// Every node may have as many senders as this.
const MIN_SENDERS: usize = 32;

/// A kernel may have room for more CPUs than the node has, and maps for each of them.
const MIN_CPUS: u64 = 64;

/// How many senders the node may have: as many as a small share of its memory suffices for. `None` stands for a node of unknown size.
pub fn max_senders(node: Option<&CachedNode>) -> usize {
    let Some(memory) = node.and_then(|node| node.memory) else { return MAX_SENDERS };
    let senders = (memory / SHARE).saturating_sub(TAP_HELPER) / sender_memory(node);
    usize::try_from(senders).unwrap_or(MAX_SENDERS).clamp(MIN_SENDERS, MAX_SENDERS)
}

/// As how many senders a flow table counts.
pub fn flow_table_senders(node: Option<&CachedNode>) -> usize {
    usize::try_from(FLOW_TABLE_MEMORY.div_ceil(sender_memory(node))).unwrap_or(MAX_SENDERS)
}

/// The memory limit of the node's tap-helper, in bytes.
pub fn tap_helper_memory(node: Option<&CachedNode>) -> u64 {
    TAP_HELPER + max_senders(node) as u64 * sender_memory(node)
}

/// The most that a sender takes there.
fn sender_memory(node: Option<&CachedNode>) -> u64 {
    let cpus = node.and_then(|node| node.cpus).unwrap_or_default().max(MIN_CPUS);
    SENDER_MEMORY + cpus * SENDER_MEMORY_PER_CPU
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{node, sized};

    fn size(memory: &str, cpus: &str) -> (usize, u64) {
        let node = CachedNode::from(sized(node("n1", &[]), memory, cpus));
        (max_senders(Some(&node)), tap_helper_memory(Some(&node)) >> 20)
    }

    #[test]
    fn a_tap_helper_takes_a_small_share_of_its_node() {
        assert_eq!(size("4Gi", "4"), (256, 512));
        assert_eq!(size("15854592Ki", "8"), (1000, 1814));
        assert_eq!(size("1Ti", "256"), (1000, 4064));
        assert_eq!(size("512Mi", "1"), (32, 120), "but enough for a few");
        assert_eq!(max_senders(None), MAX_SENDERS);
        let unknown = CachedNode::from(node("n1", &[]));
        assert_eq!(max_senders(Some(&unknown)), MAX_SENDERS);
    }
}
