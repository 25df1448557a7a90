//! What DNS says of a flow.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::Flow;
use crate::{
    record::{Answer, Query},
    time::Timestamp,
};

/// Most questions of a flow whose answers are believed.
const QUESTIONS: usize = 8;

/// What DNS says of a flow.
#[derive(Debug, Default)]
pub(super) struct Dns {
    /// The name that the sender of the first frame looked up to get the other end's address.
    name: Option<Box<str>>,
    pub(super) query: Option<Box<Query>>,
    /// IDs of the last questions, and hashes of their names, which would take much more memory.
    questions: Vec<(u16, u64)>,
    /// Codes of answers since the last record, of which there are 16, and how many answers had them.
    pub(super) responses: Vec<(u8, u32)>,
}

impl Flow {
    /// The name that the client looked up to get the server's address.
    pub fn dns_name(&self) -> Option<Box<str>> {
        self.dns.as_ref().filter(|_| self.is_client(self.first_side))?.name.clone()
    }

    /// Remembers a question to a DNS server. The name of the first one is kept if there is room. Returns whether there was.
    pub fn ask(&mut self, id: u16, name: &str, at: Timestamp, may_keep: bool) -> bool {
        let dns = self.dns.get_or_insert_default();
        if dns.query.is_none() && may_keep {
            dns.query = Some(Box::new(Query { id, name: name.into(), asked: at, answer: None }));
        }
        if dns.questions.len() == QUESTIONS {
            dns.questions.remove(0);
        }
        dns.questions.push((id, hash(name)));
        dns.query.is_some()
    }

    /// Bytes of the names that are kept of it.
    pub fn names(&self) -> usize {
        let of_dns = self.dns.as_ref().map_or(0, |dns| {
            dns.name.as_ref().map_or(0, |name| name.len()) + dns.query.as_ref().map_or(0, |query| query.name.len())
        });
        of_dns + self.beginning.name_length()
    }

    /// Whether an answer is to a question of this flow; anybody can send one.
    pub fn answer(&mut self, id: u16, name: &str, code: u8, at: Timestamp) -> bool {
        let Some(dns) = &mut self.dns else { return false };
        let asked = (id, hash(name));
        let Some(question) = dns.questions.iter().position(|question| *question == asked) else {
            return false;
        };
        dns.questions.remove(question);
        match dns.responses.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => dns.responses.push((code, 1)),
        }
        if let Some(query) = dns.query.as_deref_mut().filter(|query| query.id == id && query.answer.is_none()) {
            query.answer = Some(Answer { code, after: at.since(query.asked) });
        }
        true
    }

    pub fn set_dns_name(&mut self, name: Option<Box<str>>) {
        if let Some(name) = name {
            self.dns.get_or_insert_default().name.get_or_insert(name);
        }
    }
}

fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
