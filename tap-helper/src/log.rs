//! One line per event on standard error.

use std::{
    io::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

/// Writes events as `key=value` pairs, or as JSON objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log {
    json: bool,
}

impl Log {
    /// One that writes JSON, or one that writes pairs.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Something that an operator may want to know.
    pub fn info(self, event: &str, fields: &[(&str, &str)]) {
        self.write("info", event, fields);
    }

    /// Something that an operator should look at.
    pub fn warn(self, event: &str, fields: &[(&str, &str)]) {
        self.write("warn", event, fields);
    }

    fn write(self, level: &str, event: &str, fields: &[(&str, &str)]) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = format!("{}.{:03}", time.as_secs(), time.subsec_millis());
        let all =
            [("time", time.as_str()), ("level", level), ("event", event)].into_iter().chain(fields.iter().copied());
        let line = if self.json {
            let object: serde_json::Map<String, serde_json::Value> =
                all.map(|(key, value)| (key.to_owned(), value.into())).collect();
            serde_json::Value::Object(object).to_string()
        } else {
            all.map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join(" ")
        };
        // Nobody to tell if standard error is gone.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
    if !value.is_empty() && value.bytes().all(plain) { value.to_owned() } else { format!("{value:?}") }
}
