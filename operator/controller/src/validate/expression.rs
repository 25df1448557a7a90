//! The filter expression of a tap: its compiled program, if nodes can run it.

use std::sync::Arc;

use podtap_model::{
    Filter, FilterError, Instruction, Program, ProgramError, ProgramId, Reason, Uid, bounds::MAX_INSTRUCTIONS,
    check_program,
};
use ring::digest::{SHA256, digest};

use crate::{
    expression::compiled::{Compiled, Expressions},
    failure::Failure,
    store::snapshot::Snapshot,
};

/// Why nodes cannot run an expression.
#[derive(Debug, thiserror::Error)]
pub enum ExpressionError {
    #[error(transparent)]
    Text(#[from] FilterError),
    #[error("filter.expression {0:?} is invalid; libpcap reports: {1}")]
    Rejected(String, String),
    #[error(
        "filter.expression compiles to {0} instructions, and {MAX_INSTRUCTIONS} are allowed: use filter.include and filter.exclude for lists of hosts and ports"
    )]
    TooLong(usize),
    #[error(
        "filter.expression {0:?} depends on the capture device and not only on the frame: leave out inbound, outbound, ifindex and offsets below zero; spec.direction selects frames that enter or leave the pod"
    )]
    Extension(String),
    #[error(
        "filter.expression {0:?} compiles to a loop, which the kernel does not run: write proto instead of protochain, or set protocol in filter.include, which skips up to eight IPv6 extension headers"
    )]
    Loop(String),
    #[error("filter.expression {0:?} cannot run on nodes: {1}; write it in another way")]
    Program(String, ProgramError),
    #[error(
        "filter.expression is not compiled yet: it is retried automatically; if this persists, ask the cluster's administrator, who finds the cause in the controller's log"
    )]
    Pending,
}

impl ExpressionError {
    /// For the user.
    pub fn failure(&self) -> Failure {
        let reason = if matches!(self, Self::Pending) { Reason::Pending } else { Reason::InvalidSpec };
        Failure::new(reason, self.to_string())
    }
}

/// An expression and its program.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledExpression {
    pub text: String,
    pub program: Program,
}

impl CompiledExpression {
    /// Looks the text up among the compiled expressions, and checks the program as the nodes do: one that they refused would end the
    /// tap.
    pub fn new(text: &str, expressions: &Expressions) -> Result<Self, ExpressionError> {
        Filter { expression: Some(text.to_owned()), ..Filter::default() }.check()?;
        let compiled: &Compiled = expressions.get(text).map(Arc::as_ref).ok_or(ExpressionError::Pending)?;
        let instructions =
            compiled.as_ref().map_err(|error| ExpressionError::Rejected(text.to_owned(), error.to_string()))?;
        check_program(instructions).map_err(|error| match error {
            ProgramError::Length(count) if count > MAX_INSTRUCTIONS => ExpressionError::TooLong(count),
            ProgramError::Outside(_) => ExpressionError::Extension(text.to_owned()),
            ProgramError::Backwards(_) => ExpressionError::Loop(text.to_owned()),
            error => ExpressionError::Program(text.to_owned(), error),
        })?;
        Ok(Self { text: text.to_owned(), program: program(instructions) })
    }
}

/// A program with the identifier that follows from its content.
fn program(instructions: &[Instruction]) -> Program {
    let mut id = [0; 32];
    id.copy_from_slice(digest(&SHA256, &Program::encode(instructions)).as_ref());
    Program { id: ProgramId::from_digest(id), instructions: instructions.to_vec() }
}

/// The expression with which nodes mirror for an established tap, if its filter has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Established(pub Option<CompiledExpression>);

/// The established expression of a tap. `None` if no node mirrors for it.
pub fn established(snapshot: &Snapshot, tap: &Uid) -> Option<Established> {
    let mut specs = snapshot.node_taps.values().filter_map(|node_tap| node_tap.spec.as_ref());
    let (spec, entry) = specs.find_map(|spec| Some((spec, spec.taps.iter().find(|entry| entry.uid == *tap)?)))?;
    let Some(text) = entry.options.expression() else { return Some(Established(None)) };
    let program = spec.programs.iter().find(|program| Some(&program.id) == entry.program.as_ref())?;
    Some(Established(Some(CompiledExpression { text: text.to_owned(), program: program.clone() })))
}
