//! `struct config` of bpf/maps.h, and the settings in it.

use tap_wire::{MAX_NETWORKS, MAX_RATE, MAX_RULES, Oversize, Truncate};

use super::{
    BpfError,
    settings::{Match, Settings, raw},
};

const HAS_EXPRESSION: u32 = 1;
const HAS_INCLUDE: u32 = 2;
const NEEDS_PORTS: u32 = 4;
const DEDUPLICATES: u32 = 8;
const CUTS_OVERSIZE: u32 = 16;
const LINEARIZES: u32 = 32;
const TRUNCATE_HEADERS: u32 = u32::MAX;
/// Bytes before the rules.
const FIXED: usize = 56;
const RULE: usize = 48;
const NETWORK: usize = 36;
/// Size of the whole.
pub(super) const CONFIG: usize = FIXED + RULE * MAX_RULES + NETWORK * MAX_NETWORKS;

/// The settings as programs of the given identity read them.
pub(super) fn config(settings: &Settings, identity: u64) -> Result<Vec<u8>, BpfError> {
    let flat = |matches: &[Match]| matches.iter().flat_map(Match::rules).collect::<Vec<_>>();
    let (include, exclude) = (flat(&settings.filter.include), flat(&settings.filter.exclude));
    let rules = include.len() + exclude.len();
    if rules > MAX_RULES {
        return Err(BpfError::TooManyRules(rules));
    }
    let peers = settings.deduplicate.as_deref().unwrap_or_default();
    if peers.len() > MAX_NETWORKS {
        return Err(BpfError::TooManyNetworks(peers.len()));
    }
    let mut flags = 0;
    for (flag, set) in [
        (HAS_EXPRESSION, !settings.filter.expression.is_empty()),
        (HAS_INCLUDE, !settings.filter.include.is_empty()),
        (
            NEEDS_PORTS,
            settings.one_in_flows > 1
                || settings.deduplicate.is_some()
                || include.iter().chain(&exclude).any(super::settings::Rule::needs_ports),
        ),
        (DEDUPLICATES, settings.deduplicate.is_some()),
        (CUTS_OVERSIZE, settings.oversize == Oversize::Truncate),
        (LINEARIZES, settings.linearize),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let truncate = match settings.truncate {
        None => 0,
        // Shorter than an Ethernet header, no frame is.
        Some(Truncate::Bytes(bytes)) => bytes.clamp(14, TRUNCATE_HEADERS - 1),
        Some(Truncate::Headers) => TRUNCATE_HEADERS,
    };
    let mut bytes = Vec::with_capacity(CONFIG);
    let limit = settings.limit;
    for long in [identity, limit.bits_per_second.min(MAX_RATE), limit.packets_per_second.min(MAX_RATE)] {
        bytes.extend_from_slice(&long.to_ne_bytes());
    }
    let counts = [include.len(), rules, peers.len()].map(|count| u32::try_from(count).unwrap_or_default());
    let frame_limit = settings.frame_limit.unwrap_or_default();
    for word in [flags, counts[0], counts[1], settings.one_in_flows, truncate, frame_limit, counts[2], 0] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for rule in include.iter().chain(&exclude) {
        rule.put(&mut bytes);
    }
    bytes.resize(FIXED + RULE * MAX_RULES, 0);
    for peer in peers {
        raw(peer).put(&mut bytes);
    }
    bytes.resize(CONFIG, 0);
    Ok(bytes)
}

/// Which programs a configuration is for.
pub(super) fn identity(config: &[u8]) -> u64 {
    config.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
