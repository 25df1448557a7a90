//! The compiled expressions of all taps. Each text is compiled once.
//!
//! # Guarantees
//! Compiling never holds up a reconcile for long, and no namespace holds up the others: of those that wait, the one with the fewest
//! compilations so far is next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use podtap_model::{Filter, Instruction};
use tokio::time::Instant;

use crate::{
    expression::{
        CompileError,
        process::{self, Compiler},
    },
    in_flight::InFlight,
    retries::{Retries, RetryKey},
};

/// How many processes run at the same time.
const CONCURRENCY: usize = 2;
/// How long a reconcile waits for results. Most expressions take a few milliseconds, one with a hundred ports a fifth of a second.
const PATIENCE: Duration = Duration::from_millis(500);

/// Instructions, or libpcap's error.
pub type Compiled = Result<Vec<Instruction>, CompileError>;

/// The compiled expressions by text.
pub type Expressions = BTreeMap<String, Arc<Compiled>>;

/// The texts to compile, by namespace.
pub type Texts = BTreeMap<String, BTreeSet<String>>;

/// Why an expression has no result yet.
#[derive(Debug, thiserror::Error)]
#[error("cannot compile the expression {expression:?}")]
pub struct Error {
    expression: String,
    source: std::io::Error,
}

type Answered = (String, Result<Vec<Instruction>, process::Error>);

/// What is compiled, and what is being compiled.
#[derive(Debug, Default)]
pub struct Compilations {
    known: Expressions,
    processes: InFlight<Answered>,
    /// The texts of `processes`.
    busy: BTreeSet<String>,
    /// How many were started for each namespace.
    started: BTreeMap<String, u64>,
}

impl Compilations {
    /// The results.
    pub fn known(&self) -> &Expressions {
        &self.known
    }

    /// Takes over what an earlier leader compiled.
    pub fn adopt(&mut self, compiled: impl IntoIterator<Item = (String, Vec<Instruction>)>) {
        for (text, program) in compiled {
            self.known.entry(text).or_insert_with(|| Arc::new(Ok(program)));
        }
    }

    /// Compiles the texts that are new, as far as there is time, and forgets those that no tap has any more.
    pub async fn compile(
        &mut self,
        compiler: &Compiler,
        texts: &Texts,
        retries: &mut Retries,
        now: Timestamp,
    ) -> Vec<Error> {
        let requested: BTreeSet<&String> = texts.values().flatten().collect();
        self.known.retain(|text, _| requested.contains(text));
        self.started.retain(|namespace, _| texts.contains_key(namespace));
        let deadline = Instant::now() + PATIENCE;
        let mut errors = Vec::new();
        loop {
            errors.extend(self.record(retries, now));
            while self.processes.running() < CONCURRENCY {
                let Some(text) = self.next(texts, retries, now) else { break };
                self.busy.insert(text.clone());
                let compiler = compiler.clone();
                self.processes.spawn(async move {
                    let result = compiler.compile(&text).await;
                    (text, result)
                });
            }
            if !self.processes.answers_until(deadline).await {
                return errors;
            }
        }
    }

    /// Returns when a process has ended; never if none runs. Cancel safe.
    pub async fn answer(&mut self) {
        self.processes.answer().await;
    }

    /// The text to compile next.
    fn next(&mut self, texts: &Texts, retries: &Retries, now: Timestamp) -> Option<String> {
        let is_new = |text: &&String| {
            let is_paused = || retries.is_paused(&RetryKey::Expression((*text).clone()), now);
            !self.known.contains_key(*text) && !self.busy.contains(*text) && !is_paused()
        };
        let first = |(namespace, texts): (&String, &BTreeSet<String>)| {
            let text = texts.iter().find(is_new)?;
            Some((self.started.get(namespace).copied().unwrap_or_default(), namespace.clone(), text.clone()))
        };
        let (_, namespace, text) = texts.iter().filter_map(first).min()?;
        *self.started.entry(namespace).or_default() += 1;
        Some(text)
    }

    fn record(&mut self, retries: &mut Retries, now: Timestamp) -> Vec<Error> {
        let mut errors = Vec::new();
        for (text, result) in self.processes.take() {
            self.busy.remove(&text);
            let key = RetryKey::Expression(text.clone());
            let outcome = match result {
                Ok(program) => Ok(program),
                Err(process::Error::Rejected(error)) => Err(error),
                Err(process::Error::Process(source)) => {
                    retries.failed(key, now);
                    errors.push(Error { expression: text, source });
                    continue;
                }
            };
            retries.succeeded(&key);
            self.known.insert(text, Arc::new(outcome));
        }
        errors
    }
}

/// The texts to compile, from namespaces and texts. Validation rejects the others without asking libpcap.
pub fn compilable<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Texts {
    let mut found = Texts::new();
    for (namespace, text) in texts {
        if (Filter { expression: Some(text.to_owned()), ..Filter::default() }).check().is_ok() {
            found.entry(namespace.to_owned()).or_default().insert(text.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests;
