//! `GET /flows`: the newest flows, filtered by their fields.

use std::slice;

use serde_json::Value;

use crate::{
    output::flows::{Object, fields, line, objects, restricted::restrict},
    shared::{Readable, State},
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
        let fields: Box<dyn Iterator<Item = &Value>> = if self.fields.is_empty() {
            Box::new(object.values())
        } else {
            Box::new(self.fields.iter().filter_map(|field| object.get(field)))
        };
        // Of a list, each value counts.
        let mut values = fields.flat_map(|value| value.as_array().map_or(slice::from_ref(value), Vec::as_slice));
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
    let shown = value.to_string();
    // Strings without their quotes.
    value.as_str().unwrap_or(&shown) == text
}

/// The newest flows that are asked for and may be read, as JSON lines, the newest first. Filters see what the reader sees.
pub fn newest(readable: &Readable, query: &Query) -> Vec<u8> {
    let (mut lines, mut found, mut end) = (Vec::new(), 0, u64::MAX);
    loop {
        let mut batch: Vec<Vec<Object>> = Vec::with_capacity(BATCH);
        let before = end;
        {
            let State { newest, names, .. } = &*readable.shared.lock();
            for (number, flow) in newest.before(end, names).take(BATCH) {
                batch.push(objects(&flow, names).collect());
                end = number;
            }
        }
        if end == before {
            return lines;
        }
        let readable = batch.into_iter().flat_map(|objects| restrict(objects, &readable.namespaces));
        for object in readable.filter(|object| query.accepts(object)) {
            lines.extend_from_slice(&line(&object));
            found += 1;
            if found == query.limit {
                return lines;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use podtap_flow::{
        Counts, Endpoint, Failure, Record,
        names::{Names, Objects, Pod, Workload},
    };

    use super::*;
    use crate::{fixtures::record, namespaces::Namespaces, newest::CAPACITY, shared::Shared};

    fn pod(name: &str, last: u8) -> Pod {
        serde_json::from_value(serde_json::json!({"namespace": "shop", "name": format!("{name}-1"), "uid": name,
            "addresses": [format!("10.0.0.{last}")], "workload": Workload {
                kind: "Deployment".into(), name: name.into(), api_version: String::new() }}))
        .expect("a pod")
    }

    /// Three flows of a second each: one with an answer, one that failed, and one from elsewhere by UDP.
    fn everything() -> Readable {
        let pods = vec![pod("web", 1), pod("Cart", 2)];
        let shared =
            Shared::new(Names::new(Objects { pods, ..Objects::default() }), podtap_flow::map::Bounds::default());
        let answer = Counts { frames: 3, payload: 1000, octets: 1200, flags: 0 };
        let elsewhere = Endpoint { address: [192, 0, 2, 1].into(), port: 9 };
        let mut state = shared.lock();
        state.newest.push(Record { received: answer, dns_name: Some("cart.example".into()), ..record(1) });
        state.newest.push(Record { failure: Some(Failure::Refused), ..record(2) });
        state.newest.push(Record { client: elsewhere, protocol: 17, ..record(3) });
        drop(state);
        Readable { shared, namespaces: Namespaces::All }
    }

    /// Seconds and destinations of what is found.
    fn found(query: &str) -> Vec<(u64, String)> {
        let query = Query::parse(query).expect("it is valid");
        let text = String::from_utf8(newest(&everything(), &query)).expect("text");
        let flow = |line: &str| {
            let flow: Value = serde_json::from_str(line).expect("an object");
            (
                flow["TimeFlowStartMs"].as_u64().expect("a time") / 1000,
                flow["DstAddr"].as_str().expect("text").to_owned(),
            )
        };
        text.lines().map(flow).collect()
    }

    #[test]
    fn flows_are_found_by_their_fields() {
        let to = |seconds: u64, last: u8| (seconds, format!("10.0.0.{last}"));
        let all = [to(3, 2), to(2, 2), to(1, 2), to(1, 1)];
        assert_eq!(found(""), all, "the newest first, in both directions");
        for (query, expected) in [
            ("limit=2", &all[..2]),
            ("Proto=6", &all[1..]),
            ("Proto!=6", &all[..1]),
            ("SrcK8S_OwnerName=web&DstK8S_OwnerName=Cart", &all[1..3]),
            ("DstK8S_OwnerName~=cART", &all[..3]),
            ("Failure=refused", &all[1..2]),
            // What is missing is not equal to anything.
            ("Failure!=refused&SrcK8S_Namespace!=shop", &all[..1]),
            ("PayloadBytes%3E=1000", &all[3..]),
            ("PayloadBytes<=999&limit=10", &all[..3]),
            ("Packets>=3", &all[3..]),
            ("SrcK8S_Name|DstK8S_Name=web-1", &all[1..]),
            ("*~=192.0.2", &all[..1]),
            ("*=Deployment", &all),
            ("DstAddr=10.0.0.", &[]),
            // In both directions, the name is that of the server.
            ("SrcDnsName|DstDnsName=cart.example", &all[2..]),
            ("SrcDnsName=cart.example", &all[3..]),
        ] {
            assert_eq!(found(query), expected, "{query}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_explained() {
        for (query, expected) in [
            ("limit=0", "limit must be a number from 1 to 10000"),
            ("limit=10001", "limit must be a number from 1 to 10000"),
            ("limit=many", "limit must be a number from 1 to 10000"),
            ("Bytes>=many", "Bytes>= must be compared with a number"),
            ("Colour=red", "a flow has no field \"Colour\"; there are limit, *, TimeFlowStartMs, "),
            ("Proto|%0a%1b=red", "a flow has no field \"\\n\\u{1b}\"; "),
        ] {
            let message = Query::parse(query).expect_err(query);
            assert!(message.starts_with(expected), "{query}: {message}");
        }
        assert!(Query::parse(&"Proto=6&".repeat(MOST_FILTERS)).is_ok());
        assert!(Query::parse(&"Proto=6&".repeat(MOST_FILTERS + 1)).is_err());
    }

    #[test]
    fn all_records_are_searched_and_no_more_than_the_limit_is_returned() {
        let readable = everything();
        for number in 0..CAPACITY as u64 - 1 {
            readable.shared.lock().newest.push(record(10 + number));
        }
        let count = |query: &str| {
            let query = Query::parse(query).expect("it is valid");
            newest(&readable, &query).split_inclusive(|byte| *byte == b'\n').count()
        };
        assert_eq!(count(&format!("limit={MOST}")), MOST);
        assert_eq!(count(""), LIMIT);
        assert_eq!(count("*~=192.0.2"), 1, "the oldest one that is left");
        let start = std::time::Instant::now();
        assert_eq!(count("Failure=refused"), 0);
        println!("{CAPACITY} records are searched in {} ms", start.elapsed().as_millis());
    }
}
