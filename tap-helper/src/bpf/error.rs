use std::{error::Error, io};

use nix::errno::Errno;
use podtap_model::{ProgramError, bounds::MAX_RULES};
use thiserror::Error;

/// Why programs cannot be loaded, configured or read.
#[derive(Debug, Error)]
pub enum BpfError {
    /// The filter has more rules than the programs have room for.
    #[error(
        "the filter has {0} rules, counting each combination of a port range and a CIDR; at most {MAX_RULES} are possible"
    )]
    TooManyRules(usize),
    /// The cBPF program of the filter expression is invalid.
    #[error("the filter expression cannot be used: {0}")]
    Expression(#[from] ProgramError),
    /// A system call failed.
    #[error("cannot {operation}: {} (errno {})", errno.desc(), *errno as i32)]
    Kernel {
        /// What failed, as a verb phrase.
        operation: String,
        /// The error number.
        errno: Errno,
    },
    /// The kernel rejected a program.
    #[error("the kernel rejects the program {name}: {} (errno {}){}", errno.desc(), *errno as i32, verifier_message(log))]
    Rejected {
        /// The program.
        name: String,
        /// The error number.
        errno: Errno,
        /// The log of the verifier.
        log: String,
    },
    /// The eBPF object inside the helper is invalid.
    #[error("the helper's own eBPF object is invalid: {0}")]
    Object(#[from] ObjectError),
    /// The maps of a program are not those of this helper's programs.
    #[error("program {0} is not PodTap's, or of a version that this helper does not know")]
    Foreign(u32),
}

impl BpfError {
    pub(crate) fn kernel(operation: impl Into<String>, errno: Errno) -> Self {
        Self::Kernel { operation: operation.into(), errno }
    }

    /// An error of aya, most of which wrap that of a system call.
    pub(super) fn aya(operation: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(other) = cause.filter(|cause| !cause.is::<io::Error>()) {
            cause = other.source();
        }
        let cause = cause.and_then(<dyn Error>::downcast_ref::<io::Error>);
        match cause.and_then(io::Error::raw_os_error) {
            Some(errno) => Self::kernel(operation, Errno::from_raw(errno)),
            None => ObjectError::Aya(format!("cannot {}: {error}", operation.into())).into(),
        }
    }
}

/// Why the helper's eBPF object is invalid.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// It is no eBPF object.
    #[error(transparent)]
    Parse(#[from] aya_obj::ParseError),
    /// Its BTF is invalid.
    #[error(transparent)]
    Btf(#[from] aya_obj::btf::BtfError),
    /// A relocation is invalid. The message of the error names only the function; its source is the reason.
    #[error("{}", .0.source().map_or_else(|| .0.to_string(), ToString::to_string))]
    Relocation(#[from] aya_obj::relocation::EbpfRelocationError),
    /// A function is missing.
    #[error("it has no function {0}")]
    NoFunction(String),
    /// A map is missing, or has another shape than its Rust type.
    #[error("its maps are not those that the helper knows")]
    Maps,
    /// aya refuses an operation, without a system call.
    #[error("{0}")]
    Aya(String),
}

/// The last line of the verifier's log that gives a reason.
fn verifier_message(log: &str) -> String {
    let reason = log.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed "));
    reason.map_or_else(String::new, |line| format!(", verifier: {line}"))
}
