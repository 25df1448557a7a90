//! Between stages 1 and 2: what `filter.expression` of the taps means. Each text is compiled once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use tap_wire::Instruction;


use crate::{expression::process::{self, Compiler}, state::{Retries, RetryKey}, store::snapshot::Snapshot};

/// Longest text, in bytes.
pub const LONGEST: usize = 1024;

/// How many are compiled at the same time.
const CONCURRENCY: usize = 4;

/// Instructions, or libpcap's words.
pub type Compiled = Result<Vec<Instruction>, String>;

/// What is known, by text.
pub type Expressions = BTreeMap<String, Arc<Compiled>>;

/// Why an expression is not known yet.
#[derive(Debug, thiserror::Error)]
#[error("cannot compile the expression {expression:?}")]
pub struct Error {
    expression: String,
    source: std::io::Error,
}

/// Compiles what is new, and forgets what no tap has any more.
pub async fn compile_new(
    known: &mut Expressions,
    compiler: &Compiler,
    snapshot: &Snapshot,
    retries: &mut Retries,
) -> Vec<Error> {
    let wanted = wanted(snapshot);
    known.retain(|text, _| wanted.contains(text.as_str()));
    let is_due = |text: &&str| !retries.holds(&RetryKey::Expression((*text).to_owned()), snapshot.now);
    let new: Vec<&str> = wanted.into_iter().filter(|text| !known.contains_key(*text)).filter(is_due).collect();
    let results = stream::iter(new).map(|text| async move { (text, compiler.compile(text).await) });
    let results: Vec<_> = results.buffer_unordered(CONCURRENCY).collect().await;
    results.into_iter().filter_map(|(text, result)| note(known, retries, snapshot.now, text, result).err()).collect()
}

fn note(
    known: &mut Expressions,
    retries: &mut Retries,
    now: Timestamp,
    text: &str,
    result: Result<Vec<Instruction>, process::Error>,
) -> Result<(), Error> {
    let key = RetryKey::Expression(text.to_owned());
    let compiled = match result {
        Ok(program) => Ok(program),
        Err(process::Error::Refused(words)) => Err(words),
        Err(process::Error::Process(source)) => {
            retries.failed(key, now);
            return Err(Error { expression: text.to_owned(), source });
        }
    };
    retries.succeeded(&key);
    known.insert(text.to_owned(), Arc::new(compiled));
    Ok(())
}

/// Texts that the schema takes; others are refused before anybody asks what they mean.
pub fn wanted(snapshot: &Snapshot) -> BTreeSet<&str> {
    let specs = snapshot.taps.iter().filter_map(|entry| Some(&entry.fact.body.as_ref().ok()?.0));
    let texts = specs.filter_map(|spec| spec.filter.as_ref()?.expression.as_deref());
    texts.filter(|text| is_text(text)).collect()
}

/// Whether libpcap is asked what it means.
pub fn is_text(text: &str) -> bool {
    let is_printable = |byte: u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n');
    !text.trim().is_empty() && text.len() <= LONGEST && text.bytes().all(is_printable)
}

#[cfg(test)]
mod tests;
