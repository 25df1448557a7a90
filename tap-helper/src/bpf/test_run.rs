//! `BPF_PROG_TEST_RUN`: runs a program on a frame that exists for this purpose only.

use std::os::fd::AsFd;

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, loaded_programs};

use super::{BpfError, syscall::program_id};

/// Longest by which a program may extend a frame.
const ROOM: usize = 4096;

/// A classifier that can be run.
#[derive(Debug)]
pub(super) struct Runnable(SchedClassifier);

impl Runnable {
    pub(super) fn new(program: impl AsFd) -> Result<Self, BpfError> {
        let id = program_id(&program)?;
        let info = loaded_programs().flatten().find(|program| program.id() == id);
        let info = info.ok_or_else(|| BpfError::kernel("find a program", nix::errno::Errno::ENOENT))?;
        SchedClassifier::from_program_info(info, "".into()).map(Self).map_err(|error| failed(&error))
    }

    /// Runs it. `context` is the start of a `struct __sk_buff`, or empty. Returns the result and the frame afterwards.
    pub(super) fn run(&self, frame: &[u8], context: &[u8]) -> Result<(i32, Vec<u8>), BpfError> {
        let mut output = vec![0; frame.len() + ROOM];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ctx_in: Some(context).filter(|context| !context.is_empty()),
            ..TestRunOptions::new()
        };
        let result = self.0.test_run(options).map_err(|error| failed(&error))?;
        output.truncate(usize::try_from(result.data_size_out).unwrap_or_default());
        Ok((result.return_value.cast_signed(), output))
    }
}

fn failed(error: &ProgramError) -> BpfError {
    BpfError::aya("run a program", error)
}
