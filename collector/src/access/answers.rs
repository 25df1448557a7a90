//! Answers of the API server that are used again for a short time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long an answer is used: so long may a token or a right still be used that is gone.
pub const AGE: Duration = Duration::from_secs(10);
/// Answers at most. When there are more, all are forgotten.
const MOST: usize = 1024;

/// The answers of the last 10 seconds.
#[derive(Debug)]
pub struct Answers<Question, Answer>(Mutex<HashMap<Question, (Instant, Answer)>>);

impl<Question: Eq + Hash, Answer: Clone> Answers<Question, Answer> {
    pub fn new() -> Self {
        Self(Mutex::default())
    }

    pub fn get(&self, question: &Question) -> Option<Answer> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, answer) = answers.get(question)?;
        (at.elapsed() < AGE).then(|| answer.clone())
    }

    pub fn insert(&self, question: Question, answer: Answer) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.retain(|_, (at, _)| at.elapsed() < AGE);
        }
        // A client that asks so much only has the API server asked again.
        if answers.len() >= MOST {
            answers.clear();
        }
        answers.insert(question, (Instant::now(), answer));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten_after_a_short_time() {
        let answers = Answers::new();
        answers.insert(1, "yes");
        advance(AGE / 2).await;
        answers.insert(2, "no");
        assert_eq!((answers.get(&1), answers.get(&2), answers.get(&3)), (Some("yes"), Some("no"), None));
        advance(AGE / 2).await;
        assert_eq!((answers.get(&1), answers.get(&2)), (None, Some("no")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_answers_is_bounded() {
        let answers = Answers::new();
        answers.insert(0, ());
        advance(AGE).await;
        for number in 1..=MOST {
            answers.insert(number, ());
        }
        assert!((1..=MOST).all(|number| answers.get(&number).is_some()), "what is old makes room");
        for number in MOST..10 * MOST {
            answers.insert(number, ());
            assert!(answers.0.lock().expect("no thread panics").len() <= MOST);
            assert!(answers.get(&number).is_some());
        }
    }
}
