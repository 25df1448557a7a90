//! The compiled expressions of all taps. Each text is compiled once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use podtap_model::{Filter, Instruction};

use crate::{
    expression::{
        CompileError,
        process::{self, Compiler},
    },
    retries::{Retries, RetryKey},
};

/// How many processes run at the same time.
const CONCURRENCY: usize = 4;

/// Instructions, or libpcap's error.
pub type Compiled = Result<Vec<Instruction>, CompileError>;

/// The compiled expressions by text.
pub type Expressions = BTreeMap<String, Arc<Compiled>>;

/// Why an expression has no result yet.
#[derive(Debug, thiserror::Error)]
#[error("cannot compile the expression {expression:?}")]
pub struct Error {
    expression: String,
    source: std::io::Error,
}

/// Compiles the texts that are new, and forgets those that no tap has any more.
pub async fn compile(
    expressions: &mut Expressions,
    compiler: &Compiler,
    texts: &BTreeSet<String>,
    retries: &mut Retries,
    now: Timestamp,
) -> Vec<Error> {
    expressions.retain(|text, _| texts.contains(text));
    let is_due = |text: &&String| !retries.is_paused(&RetryKey::Expression((*text).clone()), now);
    let new: Vec<&String> = texts.iter().filter(|text| !expressions.contains_key(*text)).filter(is_due).collect();
    let results = stream::iter(new).map(|text| async move { (text, compiler.compile(text).await) });
    let results: Vec<_> = results.buffer_unordered(CONCURRENCY).collect().await;
    let mut errors = Vec::new();
    for (text, result) in results {
        let key = RetryKey::Expression(text.clone());
        let outcome = match result {
            Ok(program) => Ok(program),
            Err(process::Error::Rejected(error)) => Err(error),
            Err(process::Error::Process(source)) => {
                retries.failed(key, now);
                errors.push(Error { expression: text.clone(), source });
                continue;
            }
        };
        retries.succeeded(&key);
        expressions.insert(text.clone(), Arc::new(outcome));
    }
    errors
}

/// The texts to compile. Validation rejects the others without asking libpcap.
pub fn compilable<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let is_valid = |text: &&str| Filter { expression: Some((*text).to_owned()), ..Filter::default() }.check().is_ok();
    texts.filter(is_valid).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
