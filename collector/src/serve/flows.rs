//! `GET /flows`: the newest flows, filtered by their fields.

use serde_json::Value;

use crate::{
    output::flows::{Object, fields, line, objects},
    shared::{Shared, State},
};

/// Objects in an answer, if the query does not tell.
const LIMIT: usize = 200;
/// Objects in an answer at most: each has up to 2 KB.
pub const MOST: usize = 10_000;
/// Filters of a query.
const MOST_FILTERS: usize = 32;
/// Records that are rendered while the analysis of frames waits: that takes less than a millisecond.
const BATCH: usize = 32;

/// Which flows are asked for.
#[derive(Debug)]
pub struct Query {
    filters: Vec<Filter>,
    limit: usize,
}

/// One of these fields must be so.
#[derive(Debug)]
struct Filter {
    /// Without any: all.
    fields: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Equal(String),
    /// None of the fields is so.
    Unequal(String),
    /// In lower case.
    Contains(String),
    AtLeast(f64),
    AtMost(f64),
}

impl Query {
    /// From the query of a URL: `limit=`, and for each filter a field, or several with `|`, and `=`, `!=`, `~=` (contains), `>=` or `<=`.
    ///
    /// # Errors
    /// A message that tells what is wrong with it.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self { filters: Vec::new(), limit: LIMIT };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if key == "limit" {
                let limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit));
                parsed.limit = limit.ok_or_else(|| format!("limit must be a number from 1 to {MOST}"))?;
            } else if parsed.filters.len() == MOST_FILTERS {
                return Err(format!("a query has at most {MOST_FILTERS} filters"));
            } else {
                parsed.filters.push(Filter::parse(&key, &value)?);
            }
        }
        Ok(parsed)
    }

    fn accepts(&self, object: &Object) -> bool {
        self.filters.iter().all(|filter| filter.accepts(object))
    }
}

impl Filter {
    /// The operator's first character is the last one of the key, as in `Bytes>=1000`.
    fn parse(key: &str, value: &str) -> Result<Self, String> {
        let number = || value.parse().map_err(|_| format!("{key}= must be compared with a number"));
        let (names, test) = match key.split_at_checked(key.len().saturating_sub(1)) {
            Some((names, "!")) => (names, Test::Unequal(value.to_owned())),
            Some((names, "~")) => (names, Test::Contains(value.to_lowercase())),
            Some((names, ">")) => (names, Test::AtLeast(number()?)),
            Some((names, "<")) => (names, Test::AtMost(number()?)),
            _ => (key, Test::Equal(value.to_owned())),
        };
        if names == "*" {
            return Ok(Self { fields: Vec::new(), test });
        }
        let known: Vec<String> = fields().collect();
        let names: Vec<String> = names.split('|').map(str::to_owned).collect();
        match names.iter().find(|name| !known.contains(name)) {
            Some(unknown) => {
                let unknown: String = unknown.chars().take(60).flat_map(char::escape_default).collect();
                Err(format!("a flow has no field \"{unknown}\"; there are limit, *, {}", known.join(", ")))
            }
            None => Ok(Self { fields: names, test }),
        }
    }

    fn accepts(&self, object: &Object) -> bool {
        let mut values: Box<dyn Iterator<Item = &Value>> = if self.fields.is_empty() {
            Box::new(object.values())
        } else {
            Box::new(self.fields.iter().filter_map(|field| object.get(field)))
        };
        match &self.test {
            Test::Equal(text) => values.any(|value| is(value, text)),
            Test::Unequal(text) => !values.any(|value| is(value, text)),
            Test::Contains(part) => values.any(|value| match value {
                Value::String(text) => text.to_lowercase().contains(part),
                other => other.to_string().contains(part),
            }),
            Test::AtLeast(least) => values.any(|value| value.as_f64().is_some_and(|value| value >= *least)),
            Test::AtMost(most) => values.any(|value| value.as_f64().is_some_and(|value| value <= *most)),
        }
    }
}

fn is(value: &Value, text: &str) -> bool {
    match value {
        Value::String(value) => value == text,
        other => other.to_string() == text,
    }
}

/// The newest flows that are asked for, as JSON lines, the newest first.
pub fn newest(shared: &Shared, query: &Query) -> Vec<u8> {
    let (mut lines, mut found, mut end) = (Vec::new(), 0, u64::MAX);
    loop {
        let mut batch: Vec<Object> = Vec::with_capacity(2 * BATCH);
        let before = end;
        {
            let State { newest, names, .. } = &*shared.lock();
            for (number, flow) in newest.before(end, names).take(BATCH) {
                batch.extend(objects(&flow, names));
                end = number;
            }
        }
        if end == before {
            return lines;
        }
        for object in batch.iter().filter(|object| query.accepts(object)) {
            lines.extend_from_slice(&line(object));
            found += 1;
            if found == query.limit {
                return lines;
            }
        }
    }
}
