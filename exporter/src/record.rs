//! What sinks get: both directions of a flow.

use std::sync::Arc;

use crate::flow::Flow;

/// A line, as text and parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// JSON, without the end of the line.
    pub text: Box<str>,
    pub flow: Flow,
}

/// A report of a flow: one or both of its directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// From the client to the server.
    pub sent: Option<Line>,
    /// From the server to the client.
    pub received: Option<Line>,
}

impl Record {
    /// Its directions, the client's first.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.sent.iter().chain(&self.received)
    }

    /// What it takes in memory, in bytes, about: the text, and what was parsed from it.
    pub fn size(&self) -> usize {
        self.lines().map(|line| size_of::<Line>() + 2 * line.text.len()).sum()
    }
}

/// Makes records of lines: the collector writes both directions of a report one after the other, the client's first.
#[derive(Debug, Default)]
pub struct Pairs {
    sent: Option<Line>,
}

impl Pairs {
    /// Takes the next line, and passes on what is complete.
    pub fn push(&mut self, line: Line, pass: &mut impl FnMut(Arc<Record>)) {
        if !line.flow.reply {
            self.flush(pass);
            self.sent = Some(line);
            return;
        }
        let sent = self.sent.take();
        let (sent, alone) = if sent.as_ref().is_some_and(|sent| line.flow.is_reply_to(&sent.flow)) {
            (sent, None)
        } else {
            (None, sent)
        };
        if alone.is_some() {
            pass(Arc::new(Record { sent: alone, received: None }));
        }
        pass(Arc::new(Record { sent, received: Some(line) }));
    }

    /// Passes on the last line: its reply does not come.
    pub fn flush(&mut self, pass: &mut impl FnMut(Arc<Record>)) {
        if let Some(sent) = self.sent.take() {
            pass(Arc::new(Record { sent: Some(sent), received: None }));
        }
    }

    /// Whether a reply may follow.
    pub const fn is_waiting(&self) -> bool {
        self.sent.is_some()
    }
}

#[cfg(test)]
pub mod fixtures {
    use super::*;

    /// A line of a connection from 10.0.0.1 to port 80 of 10.0.0.2.
    pub fn line(client_port: u16, reply: bool) -> Line {
        let (from, to) = if reply { ("Dst", "Src") } else { ("Src", "Dst") };
        let text = format!(
            r#"{{"TimeFlowStartMs":1000,"TimeFlowEndMs":2000,"Etype":2048,"Proto":6,"Bytes":54,"Packets":1,"{from}Addr":"10.0.0.1","{from}Port":{client_port},"{to}Addr":"10.0.0.2","{to}Port":80{}}}"#,
            if reply { r#","Reply":true"# } else { "" }
        );
        Line { flow: serde_json::from_str(&text).expect("a flow"), text: text.into() }
    }

    /// Both directions.
    pub fn record(client_port: u16) -> Arc<Record> {
        Arc::new(Record { sent: Some(line(client_port, false)), received: Some(line(client_port, true)) })
    }

    /// Likewise, of a pod of this workload.
    pub fn named(owner: &str) -> Arc<Record> {
        let mut record = Record::clone(&record(1));
        for line in record.sent.iter_mut().chain(&mut record.received) {
            let end = if line.flow.reply { &mut line.flow.destination } else { &mut line.flow.source };
            (end.kind, end.namespace) = (Some("Pod".to_owned()), Some("shop".to_owned()));
            end.owner = Some(owner.to_owned());
        }
        record.into()
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::line, *};

    fn paired(lines: impl IntoIterator<Item = Line>) -> Vec<(Option<u16>, Option<u16>)> {
        let (mut pairs, mut records) = (Pairs::default(), Vec::new());
        for line in lines {
            pairs.push(line, &mut |record| records.push(record));
        }
        pairs.flush(&mut |record| records.push(record));
        let sent = |line: &Line| line.flow.source.port.expect("a port");
        let received = |line: &Line| line.flow.destination.port.expect("a port");
        records.iter().map(|record| (record.sent.as_ref().map(sent), record.received.as_ref().map(received))).collect()
    }

    #[test]
    fn both_directions_of_a_report_are_one_record() {
        let lines = [
            line(1, false),
            line(1, true),
            line(2, false),
            line(3, true),
            line(4, false),
            line(5, false),
            line(5, true),
        ];
        assert_eq!(
            paired(lines),
            [(Some(1), Some(1)), (Some(2), None), (None, Some(3)), (Some(4), None), (Some(5), Some(5))]
        );
    }

    #[test]
    fn each_line_is_in_one_record() {
        assert_eq!(
            paired([line(1, true), line(1, true), line(1, false)]),
            [(None, Some(1)), (None, Some(1)), (Some(1), None)]
        );
        assert_eq!(paired([]), []);
    }
}
