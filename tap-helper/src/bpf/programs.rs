use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{
    BpfError, Maps, ObjectError, Settings,
    object::{Object, TAP},
    syscall::program_id,
};
#[cfg(feature = "test-run")]
use super::{ProgramKind, test_run::Runnable};

/// Loaded programs, ready to be attached. They live as long as a filter or this refers to them.
#[derive(Debug)]
pub struct Programs {
    ingress: OwnedFd,
    egress: OwnedFd,
    clamp: OwnedFd,
    maps: Maps,
    #[cfg(feature = "test-run")]
    runnable: [std::sync::OnceLock<Runnable>; 3],
}

impl Programs {
    /// Loads and configures programs. With the maps of a predecessor they continue its counters; if they are the same programs,
    /// they also share its configuration.
    pub fn load(settings: &Settings, predecessor: Option<&Maps>) -> Result<Self, BpfError> {
        // Before anything is created, in case the settings are invalid.
        let config = settings.config()?;
        let mut existing = predecessor.map(Maps::by_name).transpose()?.unwrap_or_default();
        if predecessor.is_some_and(|maps| !maps.supports(settings)) {
            // The predecessor keeps its configuration until it is replaced.
            existing.retain(|name, _| !matches!(name.as_str(), "configs" | "active" | "peers"));
        }
        let mut object = Object::parse(TAP)?;
        if settings.program.is_some() {
            object.set_expression(&settings.expression()?)?;
        }
        if !settings.options.track_flows() {
            object.minimize_flows()?;
        }
        let maps = object.maps(existing)?;
        object.link(&maps)?;
        let mut maps = Maps::from_names(maps).ok_or(ObjectError::Maps)?;
        // If the predecessor is a clamp, which has no peers, the map is new although the configuration is not.
        maps.set_peers(&settings.peers)?;
        maps.write(&config)?;
        Ok(Self {
            ingress: object.load("podtap_ingress")?,
            egress: object.load("podtap_egress")?,
            clamp: object.load("podtap_clamp")?,
            maps,
            #[cfg(feature = "test-run")]
            runnable: Default::default(),
        })
    }

    /// Selects frames that enter the pod: a classifier without direct-action for the ingress of its interface.
    #[must_use]
    pub fn ingress(&self) -> BorrowedFd<'_> {
        self.ingress.as_fd()
    }

    /// Selects frames that leave the pod: likewise, for egress.
    #[must_use]
    pub fn egress(&self) -> BorrowedFd<'_> {
        self.egress.as_fd()
    }

    /// Clamps mirrored frames to the MTU of the underlay: a classifier with direct-action for the egress of the sender device.
    #[must_use]
    pub fn clamp(&self) -> BorrowedFd<'_> {
        self.clamp.as_fd()
    }

    /// The program IDs: ingress, egress, clamp.
    pub fn ids(&self) -> Result<[u32; 3], BpfError> {
        Ok([program_id(&self.ingress)?, program_id(&self.egress)?, program_id(&self.clamp)?])
    }

    /// The maps that the programs share.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Likewise, to configure the programs.
    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Runs a program on a frame, without a device (`BPF_PROG_TEST_RUN`). `context` is the start of a `struct __sk_buff`, or
    /// empty. Returns the result and the frame afterwards.
    #[cfg(feature = "test-run")]
    pub fn test_run(&self, kind: ProgramKind, frame: &[u8], context: &[u8]) -> Result<(i32, Vec<u8>), BpfError> {
        let program = [&self.ingress, &self.egress, &self.clamp][kind as usize];
        let runnable = &self.runnable[kind as usize];
        let runnable = if let Some(runnable) = runnable.get() {
            runnable
        } else {
            let new = Runnable::new(program)?;
            runnable.get_or_init(|| new)
        };
        runnable.run(frame, context)
    }
}
