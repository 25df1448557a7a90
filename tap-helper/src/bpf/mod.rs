//! The eBPF programs of a tap on a pod: which frames are copied, and how a copy fits the wire. All of it is decided in the kernel.
//!
//! [`Programs`] are three: one for each direction of the pod's interface, whose result is whether the filter's action runs
//! (`cls_bpf` without direct-action), and one for the sender device's egress, where only copies pass (with direct-action). They
//! share [`Running`]: the maps with the configuration and the counters. Nothing is pinned; the filters hold the programs, and
//! the programs the maps. A helper that starts finds them by a program's number, which the kernel tells with a filter
//! (`TCA_BPF_ID`).
//!
//! A change of [`Settings`] is written to the running programs and takes effect between two frames ([`Running::configure`]).
//! Only another expression, or deduplication where there was none, needs other programs ([`Running::runs`]): these are loaded
//! with the counters of the old ones ([`Programs::load`]), and take the places of those when their filters are replaced.
//!
//! A fragment that is not the first has no ports: it is taken for what the first one was. Where that was not seen, it is copied if
//! an include may want it, and no exclude that speaks of ports applies. An expression sees each frame alone, as tcpdump does.

mod classic;
mod counters;
mod layout;
mod object;
mod probe;
mod settings;
mod sys;
mod translate;
mod version;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use thiserror::Error;

pub use counters::{Count, Counters, DirectionCounters};
pub use probe::{Features, probe};
pub use settings::{Filter, Match, Settings, frame_limit};
pub use tap_wire::{
    Instruction, Limit, MAX_NETWORKS, MAX_RATE, MAX_RULES, Network, Oversize, ProgramError, Protocol, Truncate,
};
pub use translate::{Insn, translate};

use object::{Image, Maps, identity};

/// Slots for configurations (`SLOTS`, bpf/maps.h).
const SLOTS: u32 = 4;

/// Why programs are not there.
#[derive(Debug, Error)]
pub enum BpfError {
    /// There are more rules than the programs have room for.
    #[error("the filter is {0} rules once each combination of ports and networks is one; {MAX_RULES} are possible")]
    TooManyRules(usize),
    /// Likewise for networks of peers.
    #[error("there are {0} networks of peers to deduplicate with; {MAX_NETWORKS} are possible")]
    TooManyNetworks(usize),
    /// The expression is no valid program.
    #[error("the filter expression cannot be used: {0}")]
    Expression(#[from] ProgramError),
    /// The kernel refused something.
    #[error("cannot {operation}: {} (errno {})", errno.desc(), *errno as i32)]
    Kernel {
        /// What, in words that follow "cannot".
        operation: String,
        /// Its error number.
        errno: Errno,
    },
    /// The kernel refused a program.
    #[error("the kernel refuses the program {name}: {} (errno {}){}", errno.desc(), *errno as i32, last_words(log))]
    Refused {
        /// Which one.
        name: String,
        /// The error number.
        errno: Errno,
        /// What its verifier says.
        log: String,
    },
    /// The programs that were built into the helper are not as they should be.
    #[error("the helper's own eBPF programs are damaged: {0}")]
    Object(String),
    /// What was found in the kernel is not what this helper, or another version of it, puts there.
    #[error("program {0} is not PodTap's, or of a version that this helper does not know")]
    Foreign(u32),
}

impl BpfError {
    fn object(error: impl std::fmt::Display) -> Self {
        Self::Object(error.to_string())
    }

    fn kernel(operation: &str, errno: Errno) -> Self {
        Self::Kernel { operation: operation.to_owned(), errno }
    }
}

/// The end of the verifier's log, where the reason is, without its statistics.
fn last_words(log: &str) -> String {
    let reason = log.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed "));
    reason.map_or_else(String::new, |line| format!(", its verifier says: {line}"))
}

/// What running programs are, and what they are told: equal for those that do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    programs: u64,
    settings: u64,
}

impl Fingerprint {
    fn of(config: &[u8]) -> Self {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        config.hash(&mut hasher);
        Self { programs: layout::identity(config), settings: hasher.finish() }
    }

    /// Whether programs can become the other ones by other settings alone.
    #[must_use]
    pub fn same_programs(&self, other: &Self) -> bool {
        self.programs == other.programs
    }
}

impl Settings {
    /// That of programs with these settings.
    pub fn fingerprint(&self) -> Result<Fingerprint, BpfError> {
        let expression = match self.filter.expression.as_slice() {
            [] => Vec::new(),
            expression => translate(expression)?,
        };
        layout::config(self, identity(&expression, self.deduplicate.is_some())).map(|config| Fingerprint::of(&config))
    }
}

/// Loaded programs, to be put into filters. Those live as long as a filter has them.
#[derive(Debug)]
pub struct Programs {
    ingress: OwnedFd,
    egress: OwnedFd,
    fit: OwnedFd,
    running: Running,
}

impl Programs {
    /// Loads them, configured. With `before`, they have its counters, and its configuration if that is for the same programs: a
    /// program that is to join others which run.
    pub fn load(settings: &Settings, before: Option<&Running>) -> Result<Self, BpfError> {
        let expression = match settings.filter.expression.as_slice() {
            [] => Vec::new(),
            expression => translate(expression)?,
        };
        let identity = identity(&expression, settings.deduplicate.is_some());
        // Refused before anything is made.
        layout::config(settings, identity)?;
        let mut there = before.map_or_else(|| Ok(Maps::new()), Running::share)?;
        if before.is_some_and(|before| before.identity() != Some(identity)) {
            // The old programs go on with theirs until they are replaced.
            there.retain(|name, _| !matches!(name.as_str(), "configs" | "active"));
        }
        let mut image = Image::tap(&expression)?;
        let flows = if settings.deduplicate.is_some() { 8192 } else { 1 };
        let maps = image.maps(there, &[("flows", flows)])?;
        image.link(&maps)?;
        let running = Running { maps };
        running.write(settings, identity)?;
        Ok(Self {
            ingress: image.load("classify_in")?,
            egress: image.load("classify_out")?,
            fit: image.load("fit")?,
            running,
        })
    }

    /// For frames that enter the pod: a classifier without direct-action at its interface's ingress.
    #[must_use]
    pub fn ingress(&self) -> BorrowedFd<'_> {
        self.ingress.as_fd()
    }

    /// For frames that leave the pod: likewise, at egress.
    #[must_use]
    pub fn egress(&self) -> BorrowedFd<'_> {
        self.egress.as_fd()
    }

    /// For copies: a classifier with direct-action at the sender device's egress.
    #[must_use]
    pub fn fit(&self) -> BorrowedFd<'_> {
        self.fit.as_fd()
    }

    /// The numbers by which filters show them: ingress, egress, fit.
    pub fn ids(&self) -> Result<[u32; 3], BpfError> {
        let id = |program| {
            sys::program_info(program).map(|(id, _)| id).map_err(|errno| BpfError::kernel("ask for a program", errno))
        };
        Ok([id(&self.ingress)?, id(&self.egress)?, id(&self.fit)?])
    }

    /// What they share.
    #[must_use]
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Runs a program on a frame that goes nowhere (`BPF_PROG_TEST_RUN`); for tests. `context` is the start of a
    /// `struct __sk_buff`, or empty. Returns the result, and the frame afterwards.
    pub fn try_out(&self, which: Which, frame: &[u8], context: &[u8]) -> Result<(i32, Vec<u8>), BpfError> {
        let program = match which {
            Which::Ingress => &self.ingress,
            Which::Egress => &self.egress,
            Which::Fit => &self.fit,
        };
        sys::run(program, frame, context).map_err(|errno| BpfError::kernel("run a program", errno))
    }
}

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Programs`")]
pub enum Which {
    Ingress,
    Egress,
    Fit,
}

/// The maps of programs that run.
#[derive(Debug)]
pub struct Running {
    maps: Maps,
}

impl Running {
    /// Those of a program in the kernel, whoever loaded it.
    pub fn adopt(program: u32) -> Result<Self, BpfError> {
        let failed = |errno| BpfError::kernel(&format!("look at program {program}"), errno);
        let (_, ids) = sys::program_info(&sys::program_by_id(program).map_err(failed)?).map_err(failed)?;
        let mut maps = Maps::new();
        for id in ids {
            let map = sys::Map::by_id(id).map_err(failed)?;
            maps.insert(map.name().to_owned(), map);
        }
        let running = Self { maps };
        let known = [("configs", layout::CONFIG), ("active", 4), ("counters", counters::COUNTER)];
        let all = known.iter().all(|(name, size)| {
            running.maps.get(*name).is_some_and(|map| map.shape().1 == 4 && map.shape().2 == *size)
        });
        if all { Ok(running) } else { Err(BpfError::Foreign(program)) }
    }

    /// Whether these programs are those for the settings, so that [`configure`](Self::configure) is all that is needed.
    #[must_use]
    pub fn runs(&self, settings: &Settings) -> bool {
        let expression = match settings.filter.expression.as_slice() {
            [] => Ok(Vec::new()),
            expression => translate(expression),
        };
        expression
            .is_ok_and(|expression| self.identity() == Some(identity(&expression, settings.deduplicate.is_some())))
    }

    /// Whether the settings are in force already.
    #[must_use]
    pub fn has(&self, settings: &Settings) -> bool {
        self.runs(settings)
            && self.active().is_ok_and(|(_, now)| {
                layout::config(settings, layout::identity(&now)).is_ok_and(|wanted| wanted == now)
            })
    }

    /// Puts settings in force, between two frames. The programs must be those for them: see [`runs`](Self::runs).
    pub fn configure(&self, settings: &Settings) -> Result<(), BpfError> {
        let (_, now) = self.active()?;
        self.write(settings, layout::identity(&now))
    }

    /// What they are, and what they are told.
    pub fn fingerprint(&self) -> Result<Fingerprint, BpfError> {
        self.active().map(|(_, config)| Fingerprint::of(&config))
    }

    /// Number of the map with the configuration: programs that have the same one are told the same.
    pub fn group(&self) -> Result<u32, BpfError> {
        Ok(self.map("configs")?.id())
    }

    /// What happened to frames and copies since the tap was made.
    pub fn counters(&self) -> Result<Counters, BpfError> {
        counters::read(self.map("counters")?)
    }

    fn write(&self, settings: &Settings, identity: u64) -> Result<(), BpfError> {
        let config = layout::config(settings, identity)?;
        let (slot, now) = self.active()?;
        if now == config {
            return Ok(());
        }
        let failed = |errno| BpfError::kernel("write a configuration", errno);
        let next = (slot + 1) % SLOTS;
        self.map("configs")?.set(next, &config).map_err(failed)?;
        // One aligned word: a program sees all of the old configuration or all of the new one.
        self.map("active")?.set(0, &next.to_ne_bytes()).map_err(failed)
    }

    /// The slot that is in force, and what is in it.
    fn active(&self) -> Result<(u32, Vec<u8>), BpfError> {
        let failed = |errno| BpfError::kernel("read a configuration", errno);
        let slot = self.map("active")?.get(0).map_err(failed)?;
        let slot = slot.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)) % SLOTS;
        Ok((slot, self.map("configs")?.get(slot).map_err(failed)?))
    }

    fn identity(&self) -> Option<u64> {
        self.active().ok().map(|(_, config)| layout::identity(&config))
    }

    /// The same maps once more.
    fn share(&self) -> Result<Maps, BpfError> {
        let copied = |(name, map): (&String, &sys::Map)| map.try_clone().map(|map| (name.clone(), map));
        self.maps.iter().map(copied).collect::<Result<_, _>>().map_err(|errno| BpfError::kernel("share maps", errno))
    }

    fn map(&self, name: &str) -> Result<&sys::Map, BpfError> {
        self.maps.get(name).ok_or_else(|| BpfError::object(format!("there is no map {name}")))
    }
}
