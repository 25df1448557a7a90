//! Where frames come from.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context as _, Result};
use clap::Args;
use podtap_flow::EtherType;
use socket2::SockRef;

use super::{
    Captured,
    degradation::{Load, Step},
    filter::{self, LeftOut},
    receivers::Receivers,
    ring::{BLOCKS, CapturedFrame, Ring},
    vxlan::{self, Listener},
};
use crate::clock::now;

/// Datagrams of one source before the others have their turn. Of a ring, as many blocks as it has.
const TURN: usize = 1024;

/// A source of frames.
pub enum Input {
    Interface(String, Ring),
    Receivers(Receivers),
    Vxlan(Listener),
}

/// From what frames are captured.
#[derive(Args)]
#[group(skip)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
pub struct Arguments {
    /// Interfaces to capture from, until SIGINT or SIGTERM. Needs the capability NET_RAW
    #[arg(long, num_args = 1.., value_name = "NAME")]
    interface: Vec<String>,
    /// Capture from all receivers in this network namespace (ptap*), also those that are created later. Needs the capability NET_RAW
    #[arg(long)]
    receivers: bool,
    /// UDP port to which a tap sends VXLAN, as an external destination
    #[arg(long, value_name = "PORT")]
    vxlan_port: Option<u16>,
}

impl Arguments {
    /// The arguments by their IDs, for groups: a group cannot contain another one.
    pub const IDS: [&str; 3] = ["interface", "receivers", "vxlan_port"];

    /// Starts to capture.
    pub fn open(&self) -> Result<Vec<Input>> {
        let interfaces = self.interface.iter().map(|name| Input::interface(name));
        interfaces.chain(self.receivers.then(Input::receivers)).chain(self.vxlan_port.map(Input::vxlan)).collect()
    }
}

impl Input {
    /// Captures from an interface.
    fn interface(name: &str) -> Result<Self> {
        let ring = Ring::open(name).with_context(|| cannot_capture(name))?;
        Ok(Self::Interface(name.to_owned(), ring))
    }

    /// Captures from the receivers of all taps that have this pod as their destination.
    fn receivers() -> Result<Self> {
        let receivers =
            Receivers::open().context("frames cannot be captured: the program needs the capability NET_RAW")?;
        Ok(Self::Receivers(receivers))
    }

    /// Receives what a tap sends to its external destination.
    fn vxlan(port: u16) -> Result<Self> {
        let listener = Listener::bind(port).with_context(|| format!("UDP port {port} cannot be listened on"))?;
        Ok(Self::Vxlan(listener))
    }

    /// What it is called in files of frames.
    pub fn name(&self) -> String {
        match self {
            Self::Interface(name, _) => name.clone(),
            Self::Receivers(_) => "receivers".to_owned(),
            Self::Vxlan(_) => "VXLAN".to_owned(),
        }
    }

    /// Whether frames still come. Without its device, a packet socket only reports an error.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Interface(name, ring) => ring.check().with_context(|| format!("{name} went down, or was removed")),
            Self::Receivers(_) | Self::Vxlan(_) => Ok(()),
        }
    }

    /// How full it is, and counts what was lost since the last call.
    pub fn load(&mut self, captured: &mut Captured) -> io::Result<Load> {
        let (full, dropped) = match self {
            Self::Interface(_, ring) | Self::Receivers(Receivers { ring, .. }) => {
                (ring.waiting() * 100 / BLOCKS, ring.dropped()?)
            }
            Self::Vxlan(listener) => {
                let (full, dropped) = listener.load()?;
                if captured.step == Step::Filtered {
                    // The kernel counts these together. Those without room are few: a full buffer is pressure, too.
                    captured.left_out += dropped;
                    (full, 0)
                } else {
                    (full, dropped)
                }
            }
        };
        captured.dropped += dropped;
        Ok(Load { full, has_dropped: dropped > 0 })
    }

    /// Has the kernel leave out most frames, with the EtherType of those that taps send, or none.
    pub(super) fn filter(&mut self, ether_type: Option<EtherType>, captured: &mut Captured) -> io::Result<()> {
        let (start, left_out) = match self {
            Self::Interface(..) | Self::Receivers(_) => (0, LeftOut::Sampled),
            Self::Vxlan(_) => (vxlan::FRAME, LeftOut::Counted),
        };
        if let Some(ether_type) = ether_type {
            SockRef::from(&*self).attach_filter(&filter::program(start, ether_type.get(), left_out))
        } else {
            SockRef::from(&*self).detach_filter()?;
            // What it left out last is no pressure.
            self.load(captured).map(drop)
        }
    }

    /// Passes on the frames that wait, as far as it is its turn.
    pub fn read(&mut self, mut take: impl FnMut(&[CapturedFrame<'_>])) -> io::Result<()> {
        match self {
            Self::Interface(_, ring) => (0..BLOCKS).take_while(|_| ring.read(&mut take)).for_each(drop),
            // One source: a flow between two tapped pods is one flow, also if each has a tap of its own.
            Self::Receivers(receivers) => (0..BLOCKS).take_while(|_| receivers.read(&mut take)).for_each(drop),
            Self::Vxlan(listener) => {
                for _ in 0..TURN {
                    let at = now();
                    let Some(bytes) = listener.receive()? else { break };
                    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    if length > 0 {
                        take(&[CapturedFrame { at, length, bytes, interface: 0, follows_drops: false }]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Of an interface.
pub fn cannot_capture(name: &str) -> String {
    format!(
        "{name} cannot be captured from: it must be an interface of this network namespace, and the program needs the capability NET_RAW"
    )
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Interface(_, ring) => ring.as_fd(),
            Self::Receivers(receivers) => receivers.ring.as_fd(),
            Self::Vxlan(listener) => listener.as_fd(),
        }
    }
}
