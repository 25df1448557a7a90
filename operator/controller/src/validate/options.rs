//! The mirror options of a tap.

use podtap_model::{Deduplicate, Filter, Handshakes, MirrorOptions, Program, Reason, Truncate};

use crate::{
    expression::compiled::Expressions,
    failure::Failure,
    validate::expression::{CompiledExpression, Established},
};

/// Bytes of each direction of a flow that a collector gets: a `ClientHello` with a post-quantum key share has 1800.
const BEGINNINGS: u32 = 4096;

/// Valid mirror options.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TapOptions {
    /// What nodes apply.
    pub options: MirrorOptions,
    /// The program of the filter expression.
    pub program: Option<Program>,
    /// Why the filter expression is the established one, and not that of the spec.
    pub rejected_expression: Option<Failure>,
}

impl TapOptions {
    /// Checks the options. A tap that is already mirroring keeps its expression, which `established` looks up, if that of the spec is
    /// invalid.
    pub fn new(
        options: &MirrorOptions,
        expressions: &Expressions,
        established: impl FnOnce() -> Option<Established>,
    ) -> Result<Self, Failure> {
        let text = options.expression();
        let (expression, rejected_expression) =
            match text.map(|text| CompiledExpression::new(text, expressions)).transpose() {
                Ok(expression) => (expression, None),
                Err(error) => match established() {
                    Some(Established(expression)) => (expression, Some(error.failure())),
                    None => return Err(error.failure()),
                },
            };
        let options = with_expression(options, expression.as_ref());
        options.check().map_err(|error| Failure::new(Reason::InvalidSpec, error.to_string()))?;
        Ok(Self { options, program: expression.map(|expression| expression.program), rejected_expression })
    }
}

impl TapOptions {
    /// With what a collector needs where the spec says nothing: addresses of services, names in DNS answers and TLS handshakes, and
    /// headers.
    pub fn for_collectors(mut self) -> Self {
        let headers = Truncate { headers_only: true, exempt_bytes: Some(BEGINNINGS), ..Truncate::default() };
        self.options.truncate.get_or_insert(headers);
        self.options.deduplicate.get_or_insert(Deduplicate { handshakes: Handshakes::Both });
        self
    }
}

/// The options with this expression in the filter; without a filter if it would be empty.
fn with_expression(options: &MirrorOptions, expression: Option<&CompiledExpression>) -> MirrorOptions {
    let expression = expression.map(|expression| expression.text.clone());
    let filter = options.filter.as_ref().map(|filter| Filter { expression, ..filter.clone() });
    MirrorOptions { filter: filter.filter(|filter| *filter != Filter::default()), ..options.clone() }
}

#[cfg(test)]
mod tests;
