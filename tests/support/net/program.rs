use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::signal::Signal;

use super::{Network, Node};
use crate::{
    child::{Killed, signal},
    wait::{PATIENCE, until},
};

/// A third-party program that runs in a network until it is stopped.
#[derive(Debug)]
pub struct Program {
    child: Killed,
    errors: PathBuf,
}

impl Program {
    /// Starts a program, and waits until it has written `ready` to standard error. Its log is in the node's directory.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[must_use]
    #[track_caller]
    pub fn start(node: &Node, network: &Network, command: &[&str], ready: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let errors = node.directory().join(format!("program{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
        let output = File::create(&errors).expect("a file can be created");
        let mut started = Command::new(command[0]);
        started.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = network.within(|| started.spawn()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let program = Self { child: Killed(child), errors };
        until(&format!("{} is ready", command[0]), PATIENCE, || {
            let text = program.errors();
            if text.contains(ready) { Ok(()) } else { Err(text) }
        });
        program
    }

    /// Its standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Interrupts it, and waits until it has ended.
    ///
    /// # Panics
    /// When it does not end within [`PATIENCE`].
    pub fn end(mut self) {
        signal(&self.child.0, Signal::SIGINT);
        until("the program ends", PATIENCE, || match self.child.0.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}: {}", self.errors())),
        });
    }
}
