use std::{
    collections::BTreeSet,
    fmt,
    hash::{Hash as _, Hasher as _},
    net::IpAddr,
    os::fd::AsFd as _,
};

use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError};

use super::{
    BpfError, Counters, Monotonic, ObjectError, SetCounters, Settings,
    constants::{SENDERS, SLOTS},
    layout::{Config, Peer},
    object::{MapsByName, maps_of},
};
use crate::names::Hash;

/// [`Config::peers_hash`] while the peers are changed.
const UNKNOWN_PEERS: u64 = 1;

/// The maps that the programs of a set share: their configuration, and counters and state of each sender.
pub struct Maps {
    configs: Array<MapData, Config>,
    active: Array<MapData, u32>,
    counters: SetCounters,
    /// Only the classifiers have it: missing if the maps are those of a clamp.
    deadlines: Option<Array<MapData, u64>>,
    /// None in the maps of a clamp, which does not use it.
    peers: Option<HashMap<MapData, Peer, u32>>,
    /// The maps that only the programs use.
    others: MapsByName,
}

impl fmt::Debug for Maps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Maps").finish_non_exhaustive()
    }
}

/// Identifies the programs and the configuration of a set of maps: equal fingerprints, equal behavior.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    programs: u64,
    config: u64,
}

impl Fingerprint {
    fn of(config: &Config) -> Self {
        let mut hash = Hash::new();
        config.hash(&mut hash);
        Self { programs: config.program_hash, config: hash.finish() }
    }

    /// Whether both are of the same programs, which [`Maps::configure`] can reconfigure.
    #[must_use]
    pub fn same_programs(&self, other: &Self) -> bool {
        self.programs == other.programs
    }
}

impl Settings {
    /// The fingerprint of programs with these settings.
    pub fn fingerprint(&self) -> Result<Fingerprint, BpfError> {
        self.config().map(|config| Fingerprint::of(&config))
    }

    pub(super) fn config(&self) -> Result<Config, BpfError> {
        Config::new(self, self.program_hash()?)
    }
}

impl Maps {
    /// The maps of a program in the kernel, whichever process loaded it.
    pub fn adopt(program: u32) -> Result<Self, BpfError> {
        Self::from_names(maps_of(program)?).ok_or(BpfError::Foreign(program))
    }

    /// None if a map is missing or has another shape.
    pub(super) fn from_names(mut maps: MapsByName) -> Option<Self> {
        let mut take = |name: &str| Map::from_map_data(maps.remove(name)?).ok();
        Some(Self {
            configs: take("configs")?.try_into().ok()?,
            active: take("active")?.try_into().ok()?,
            counters: SetCounters::new(take("counters")?)?,
            deadlines: take("deadlines").and_then(|map| map.try_into().ok()),
            peers: take("peers").map(TryInto::try_into).transpose().ok()?,
            others: maps,
        })
    }

    /// New descriptors of the same maps.
    pub(super) fn by_name(&self) -> Result<MapsByName, BpfError> {
        let own = [("configs", self.configs.map()), ("active", self.active.map()), ("counters", self.counters.map())];
        let own = own.into_iter().chain(self.deadlines.iter().map(|map| ("deadlines", map.map())));
        let peers = self.peers.iter().map(|peers| ("peers", peers.map()));
        let others = self.others.iter().map(|(name, map)| (name.as_str(), map)).chain(peers);
        let reopen = |(name, map): (&str, &MapData)| {
            let map = MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?;
            Ok((name.to_owned(), map))
        };
        let maps: Result<_, MapError> = own.chain(others).map(reopen).collect();
        maps.map_err(|error| BpfError::aya("share maps", &error))
    }

    /// Whether the programs support the settings, so that [`configure`](Self::configure) applies them.
    #[must_use]
    pub fn supports(&self, settings: &Settings) -> bool {
        let desired = settings.fingerprint();
        self.fingerprint().is_ok_and(|own| desired.is_ok_and(|desired| desired.same_programs(&own)))
    }

    /// Whether the settings are in effect.
    #[must_use]
    pub fn is_configured(&self, settings: &Settings) -> bool {
        self.active().is_ok_and(|(_, config)| settings.config().is_ok_and(|desired| desired == config))
    }

    /// Applies settings between two frames. The programs must [support](Self::supports) them.
    pub fn configure(&mut self, settings: &Settings) -> Result<(), BpfError> {
        let (_, current) = self.active()?;
        let config = Config::new(settings, current.program_hash)?;
        if config.peers_hash != current.peers_hash {
            self.set_peers(&settings.peers)?;
        }
        self.write(&config)
    }

    /// Adds and removes peers, one by one, without an effect on flows with other addresses.
    pub(super) fn set_peers(&mut self, peers: &[IpAddr]) -> Result<(), BpfError> {
        let failed = |error: &MapError| BpfError::aya("write the peers", error);
        let map = self.peers.as_ref().ok_or(ObjectError::Maps)?;
        let desired: BTreeSet<Peer> = peers.iter().copied().map(Peer::from).collect();
        let present: BTreeSet<Peer> = map.keys().collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        if present == desired {
            return Ok(());
        }
        // If this is interrupted, the hash differs from that of any peers, and the next attempt completes it. Programs do not read the
        // hash, and the other fields stay the same, so this takes no slot.
        let (slot, mut config) = self.active()?;
        config.peers_hash = UNKNOWN_PEERS;
        self.configs.set(slot, config, 0).map_err(|error| failed(&error))?;
        let map = self.peers.as_mut().ok_or(ObjectError::Maps)?;
        // Removed first: what is left to them may be mirrored nowhere.
        let removed = present.difference(&desired).try_for_each(|peer| map.remove(peer));
        let added = removed.and_then(|()| desired.difference(&present).try_for_each(|peer| map.insert(*peer, 0, 0)));
        added.map_err(|error| failed(&error))
    }

    pub(super) fn write(&mut self, config: &Config) -> Result<(), BpfError> {
        let (slot, current) = self.active()?;
        if current == *config {
            return Ok(());
        }
        let next = (slot + 1) % SLOTS;
        let written = self.configs.set(next, config, 0);
        // One aligned word: a program sees either the old or the new configuration.
        let activated = written.and_then(|()| self.active.set(0, next, 0));
        activated.map_err(|error| BpfError::aya("write a configuration", &error))
    }

    /// The fingerprint of the programs, with the configuration that is in effect.
    pub fn fingerprint(&self) -> Result<Fingerprint, BpfError> {
        self.active().map(|(_, config)| Fingerprint::of(&config))
    }

    /// The ID of the map with the configuration: the same for all programs that share these maps.
    pub fn id(&self) -> Result<u32, BpfError> {
        map_id(self.configs.map())
    }

    /// The ID of the map with the counters: the same for these programs and for those that continue their counters.
    pub fn counters_id(&self) -> Result<u32, BpfError> {
        map_id(self.counters.map())
    }

    /// When the sender with a class ID stops mirroring; none if it mirrors nothing, or if the maps are those of a clamp.
    pub fn deadline(&self, classid: u32) -> Result<Option<Monotonic>, BpfError> {
        let Some(deadlines) = &self.deadlines else { return Ok(None) };
        let nanoseconds =
            deadlines.get(&(classid % SENDERS), 0).map_err(|error| BpfError::aya("read a deadline", &error))?;
        Ok((nanoseconds != 0).then_some(Monotonic::from_nanoseconds(nanoseconds)))
    }

    /// Sets when the sender with a class ID stops mirroring: with none, at once. A later moment makes it mirror again.
    pub fn set_deadline(&mut self, classid: u32, moment: Option<Monotonic>) -> Result<(), BpfError> {
        let deadlines = self.deadlines.as_mut().ok_or(ObjectError::Maps)?;
        let set = deadlines.set(classid % SENDERS, moment.map_or(0, Monotonic::nanoseconds), 0);
        set.map_err(|error| BpfError::aya("write a deadline", &error))
    }

    /// [`SetCounters::sender`].
    pub fn counters(&self, classid: u32) -> Result<Counters, BpfError> {
        self.counters.sender(classid)
    }

    /// Only the counters of all senders.
    #[must_use]
    pub fn into_counters(self) -> SetCounters {
        self.counters
    }

    /// The slot that is in effect, and its configuration.
    fn active(&self) -> Result<(u32, Config), BpfError> {
        let read = || {
            let slot = self.active.get(&0, 0)? % SLOTS;
            Ok((slot, self.configs.get(&slot, 0)?))
        };
        read().map_err(|error: MapError| BpfError::aya("read a configuration", &error))
    }
}

fn map_id(map: &MapData) -> Result<u32, BpfError> {
    map.info().map(|info| info.id()).map_err(|error| BpfError::aya("inspect a map", &error))
}
