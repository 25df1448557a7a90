//! The program sets of this node's taps.
//!
//! The kernel's verifier takes up to a tenth of a second for a set, and a pod may send its first frames within that. So the senders of
//! a tap share sets, and sets are loaded ahead, on a thread of their own, for senders whose pod does not run yet.

mod preloaded;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use nix::errno::Errno;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tracing::warn;

use preloaded::Preloaded;

use crate::{
    bpf::{BpfError, Maps, Monotonic, Programs, SENDERS, Settings},
    deadline::Deadline,
    failure::Failure,
    resource::SenderKey,
    step::Predecessor,
};

/// The loaded sets.
pub struct ProgramSets {
    /// By the UID of the tap whose senders share them.
    taps: BTreeMap<String, Vec<ProgramSet>>,
    preloaded: Preloaded,
    loading: Option<Loading>,
    /// Settings of a tap that could not be loaded ahead. The sender that needs them reports why.
    failed: BTreeMap<String, Settings>,
    recovered: bool,
}

/// A loaded set, with all that a sender needs to be added to it.
struct ProgramSet {
    programs: Programs,
    /// ID of its map with the configuration.
    configs: u32,
    /// ID of its map with the counters, which it shares with sets of other code that preceded it.
    counters: u32,
    /// The pod of each class ID, none after its sender was removed. A class ID is never given to another pod, so neither are the
    /// counters and the state of its sender.
    pods: Vec<Option<String>>,
}

/// A set that is being loaded for a tap; for none, the preloaded one.
struct Loading {
    tap: Option<String>,
    settings: Settings,
    task: JoinHandle<Result<Programs, BpfError>>,
}

/// A sender's set, and its class ID there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSlot {
    tap: String,
    /// ID of the set's map with the configuration.
    pub configs: u32,
    /// The class ID of the sender's filters.
    pub classid: u32,
    /// When the sender stops mirroring.
    pub deadline: Monotonic,
}

impl ProgramSet {
    fn new(programs: Programs, pods: Vec<Option<String>>) -> Result<Self, BpfError> {
        let (configs, counters) = (programs.maps().id()?, programs.maps().counters_id()?);
        Ok(Self { programs, configs, counters, pods })
    }

    fn has_room(&self) -> bool {
        self.pods.len() < SENDERS as usize
    }

    fn supports(&self, settings: &Settings) -> bool {
        self.programs.maps().supports(settings)
    }

    fn classid_of(&self, pod: &str) -> Option<u32> {
        let position = self.pods.iter().position(|known| known.as_deref() == Some(pod));
        position.and_then(|position| u32::try_from(position).ok())
    }
}

impl ProgramSets {
    /// Only the preloaded set, which is loaded at once.
    pub fn new(now: Instant) -> Self {
        let preloaded = Preloaded::new(now);
        Self { taps: BTreeMap::new(), preloaded, loading: None, failed: BTreeMap::new(), recovered: false }
    }

    /// Whether programs can be loaded, as far as the last attempt shows.
    pub fn can_load(&self) -> bool {
        self.preloaded.failure().is_none()
    }

    /// Why a sender cannot get programs, if none can be loaded and no loaded set has room for it. If it has programs that only a set of
    /// its own could succeed, that shows when they are [assigned](Self::assign).
    pub fn failure(&self, sender: &SenderKey, settings: &Settings) -> Option<&Failure> {
        let suits =
            |set: &ProgramSet| set.supports(settings) && (set.has_room() || set.classid_of(&sender.pod).is_some());
        self.preloaded.failure().filter(|_| !self.taps.get(&sender.tap).into_iter().flatten().any(suits))
    }

    /// When to [`preload`](Self::preload) again, after the preloaded set could not be loaded. None while a set is being loaded.
    pub fn retry_at(&self) -> Option<Instant> {
        self.preloaded.retry_at().filter(|_| self.loading.is_none())
    }

    /// Whether programs can be loaded again since the last call.
    pub fn recovered(&mut self) -> bool {
        std::mem::take(&mut self.recovered)
    }

    /// Forgets the senders that are no longer requested, and sets that no sender can need.
    pub fn retain(&mut self, senders: &BTreeSet<SenderKey>) {
        self.failed.clear();
        for (tap, sets) in &mut self.taps {
            let stays = |pod: &String| senders.contains(&SenderKey { tap: tap.clone(), pod: pod.clone() });
            for set in &mut *sets {
                for pod in &mut set.pods {
                    pod.take_if(|pod| !stays(pod));
                }
            }
            sets.retain(|set| set.has_room() || set.pods.iter().any(Option::is_some));
        }
        let taps: BTreeSet<&str> = senders.iter().map(|sender| sender.tap.as_str()).collect();
        self.taps.retain(|tap, _| taps.contains(tap.as_str()));
    }

    /// Finds or loads programs for a sender, and sets its deadline there, before a filter has them. With those that it has it keeps
    /// their counters; if these have the same code, also their configuration.
    pub async fn assign(
        &mut self,
        sender: &SenderKey,
        settings: &Settings,
        deadline: Deadline,
        predecessor: Option<Predecessor>,
    ) -> Result<SetSlot, BpfError> {
        // If that program was removed meanwhile, there are no counters to continue.
        let running =
            predecessor.and_then(|Predecessor { program, classid }| Some((Maps::adopt(program).ok()?, classid)));
        let (position, classid) = match running {
            Some((maps, classid)) => (self.successor(&sender.tap, settings, &maps)?, classid),
            None => self.first(sender, settings).await?,
        };
        let set = &mut self.sets(&sender.tap)[position];
        let maps = set.programs.maps_mut();
        maps.configure(settings)?;
        let deadline = deadline.after(maps.deadline(classid)?);
        maps.set_deadline(classid, Some(deadline))?;
        Ok(SetSlot { tap: sender.tap.clone(), configs: set.configs, classid, deadline })
    }

    /// The programs of a sender.
    pub fn programs(&self, slot: &SetSlot) -> Option<&Programs> {
        let mut sets = self.taps.get(&slot.tap)?.iter();
        sets.find(|set| set.configs == slot.configs).map(|set| &set.programs)
    }

    fn sets(&mut self, tap: &str) -> &mut Vec<ProgramSet> {
        self.taps.entry(tap.to_owned()).or_default()
    }

    /// The position of the set that takes the place of running programs.
    fn successor(&mut self, tap: &str, settings: &Settings, running: &Maps) -> Result<usize, BpfError> {
        let (configs, counters) = (running.id()?, running.counters_id()?);
        let same_code = running.supports(settings);
        let sets = self.sets(tap);
        let suits = |set: &ProgramSet| {
            if same_code { set.configs == configs } else { set.counters == counters && set.supports(settings) }
        };
        if let Some(position) = sets.iter().position(suits) {
            return Ok(position);
        }
        let programs = Programs::load(settings, Some(running))?;
        // Other senders of the running programs move to the new ones, too, and further ones with them.
        let old = sets.iter().position(|set| set.counters == counters && !same_code);
        // Who has which class ID of an earlier helper's set is not known, so it has no room.
        let pods = old.map_or_else(|| vec![None; SENDERS as usize], |position| sets.remove(position).pods);
        sets.push(ProgramSet::new(programs, pods)?);
        Ok(sets.len() - 1)
    }

    /// The set and the class ID of a sender without programs.
    async fn first(&mut self, sender: &SenderKey, settings: &Settings) -> Result<(usize, u32), BpfError> {
        loop {
            let sets = self.sets(&sender.tap);
            // Loaded ahead for options that have changed since.
            sets.retain(|set| set.supports(settings) || set.pods.iter().any(Option::is_some));
            // It may have lost its programs, or not got them.
            let known = |set: &ProgramSet| set.classid_of(&sender.pod).filter(|_| set.supports(settings));
            if let Some(found) = sets.iter().enumerate().find_map(|(position, set)| Some((position, known(set)?))) {
                return Ok(found);
            }
            let free = sets.iter_mut().enumerate().find(|(_, set)| set.has_room() && set.supports(settings));
            if let Some((position, set)) = free {
                set.pods.push(Some(sender.pod.clone()));
                return Ok((position, set.classid_of(&sender.pod).unwrap_or_default()));
            }
            // It is ready, and so another set need not be awaited.
            if let Some(programs) = self.preloaded.take_for(settings) {
                self.add(&sender.tap, programs)?;
                continue;
            }
            let awaited = |loading: &mut Loading| {
                loading.tap.as_ref() == Some(&sender.tap) && same_code(&loading.settings, settings)
            };
            let programs = match self.loading.take_if(awaited) {
                Some(loading) => finished(loading.task.await)?,
                None => Programs::load(settings, None)?,
            };
            self.add(&sender.tap, programs)?;
        }
    }

    fn add(&mut self, tap: &str, programs: Programs) -> Result<(), BpfError> {
        let set = ProgramSet::new(programs, Vec::new())?;
        self.sets(tap).push(set);
        Ok(())
    }

    /// Gives the preloaded set to a tap whose waiting senders it suits, and starts to load a set, if one is missing and none is being
    /// loaded: for the waiting senders of another tap, or the next preloaded one.
    pub fn preload<'a>(&mut self, waiting: impl Iterator<Item = (SenderKey, &'a Settings)>, now: Instant) {
        let mut needs: BTreeMap<String, (&Settings, usize)> = BTreeMap::new();
        for (sender, settings) in waiting {
            let assigned =
                self.taps.get(&sender.tap).into_iter().flatten().any(|set| set.classid_of(&sender.pod).is_some());
            needs.entry(sender.tap).or_insert((settings, 0)).1 += usize::from(!assigned);
        }
        for (tap, (settings, count)) in needs {
            if count > self.room(&tap, settings)
                && let Some(programs) = self.preloaded.take_for(settings)
            {
                self.add_preloaded(tap.clone(), settings, Ok(programs));
            }
            let is_missing = count > self.room(&tap, settings) && self.failed.get(&tap) != Some(settings);
            if is_missing && self.loading.is_none() {
                self.start(Some(tap), settings);
            }
        }
        if self.loading.is_none() && self.preloaded.is_due(now) {
            self.start(None, &Settings::default());
        }
    }

    /// How many more senders the sets of a tap have room for.
    fn room(&self, tap: &str, settings: &Settings) -> usize {
        let sets = self.taps.get(tap).into_iter().flatten();
        sets.filter(|set| set.supports(settings)).map(|set| SENDERS as usize - set.pods.len()).sum()
    }

    fn add_preloaded(&mut self, tap: String, settings: &Settings, programs: Result<Programs, BpfError>) {
        match programs.and_then(|programs| self.add(&tap, programs)) {
            Ok(()) => self.recovered |= self.preloaded.recover(),
            Err(error) => {
                // What the tap shares with all others has been logged.
                if self.preloaded.failure().is_none() {
                    warn!(%error, "cannot load programs ahead");
                }
                self.failed.insert(tap, settings.clone());
            }
        }
    }

    fn start(&mut self, tap: Option<String>, settings: &Settings) {
        let owned = settings.clone();
        let task = spawn_blocking(move || Programs::load(&owned, None));
        self.loading = Some(Loading { tap, settings: settings.clone(), task });
    }

    /// Ready when a set has been loaded, once.
    pub fn poll_loaded(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(loading) = &mut self.loading else { return Poll::Pending };
        let result = finished(ready!(Pin::new(&mut loading.task).poll(context)));
        if let Some(Loading { tap, settings, .. }) = self.loading.take() {
            match tap {
                Some(tap) => self.add_preloaded(tap, &settings, result),
                None => self.recovered |= self.preloaded.finished(result, Instant::now()),
            }
        }
        Poll::Ready(())
    }
}

/// Whether one program set supports both.
fn same_code(one: &Settings, other: &Settings) -> bool {
    let fingerprints = [one, other].map(Settings::fingerprint);
    matches!(fingerprints, [Ok(one), Ok(other)] if one.same_programs(&other))
}

/// The result of a task, which ends early only with the runtime.
fn finished(result: Result<Result<Programs, BpfError>, JoinError>) -> Result<Programs, BpfError> {
    result.unwrap_or_else(|_| Err(BpfError::kernel("load programs ahead", Errno::ECANCELED)))
}
