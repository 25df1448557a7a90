//! The map as a picture: DOT for graphviz, Mermaid for Markdown.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use podtap_flow::map::{Map, Party};

/// How a party is shown: as the Otterize CLI names workloads.
pub fn label(party: &Party) -> String {
    match party {
        Party::Workload { namespace, workload } => format!("{}.{namespace}", workload.name),
        Party::Service { namespace, name } => format!("{name}.{namespace}"),
        Party::Node { name } => format!("node {name}"),
        Party::External { name: Some(name) } => name.clone(),
        Party::External { name: None } => "external".to_owned(),
        Party::AnotherNamespace => "another namespace".to_owned(),
        Party::Other => "other".to_owned(),
    }
}

/// Numbers of all parties, and pairs of them.
pub fn graph(map: &Map) -> (BTreeMap<&Party, usize>, Vec<(usize, usize)>) {
    let mut parties: BTreeMap<&Party, usize> = BTreeMap::new();
    for (edge, _) in map.edges() {
        parties.insert(&edge.client, 0);
        parties.insert(&edge.server, 0);
    }
    for (number, party) in parties.values_mut().enumerate() {
        *party = number;
    }
    let edges = map.edges().map(|(edge, _)| (parties[&edge.client], parties[&edge.server])).collect();
    (parties, edges)
}

/// Writes DOT, from left to right.
pub fn dot(out: &mut impl Write, map: &Map) -> io::Result<()> {
    let (parties, edges) = graph(map);
    writeln!(out, "digraph calls {{\n  rankdir=LR;\n  node [shape=box];")?;
    for (party, number) in &parties {
        writeln!(out, "  n{number} [label=\"{}\"];", label(party).replace('\\', "\\\\").replace('"', "\\\""))?;
    }
    for (client, server) in edges {
        writeln!(out, "  n{client} -> n{server};")?;
    }
    writeln!(out, "}}")
}

/// Writes a Mermaid flowchart, from left to right.
pub fn mermaid(out: &mut impl Write, map: &Map) -> io::Result<()> {
    let (parties, edges) = graph(map);
    writeln!(out, "flowchart LR")?;
    for (party, number) in &parties {
        writeln!(out, "  n{number}[\"{}\"]", label(party).replace('"', "#quot;"))?;
    }
    for (client, server) in edges {
        writeln!(out, "  n{client} --> n{server}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use podtap_flow::{
        Endpoint, Event, Limits, Table, Timestamp,
        map::Bounds,
        named::NamedRecord,
        names::{Names, Objects},
        packet,
    };

    use super::*;

    /// A datagram from 10.0.0.1 to a network with this name.
    fn map(name: &str) -> Map {
        let mut frame = vec![0; 14];
        frame[12] = 8;
        frame.extend([0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1, 9, 9, 0, 80, 0, 9, 0, 0, 7]);
        let packet = packet::parse(&frame, 43).expect("an IP packet");
        let mut table = Table::new(Limits::default());
        let mut map = Map::new(Bounds::default());
        let networks = vec![("192.0.2.0/24".parse().expect("a network"), name.to_owned())];
        let names = Names::new(Objects { networks, ..Objects::default() });
        let mut take = |event| {
            if let Event::Record(record) = event {
                assert_eq!(record.server, Endpoint { address: [192, 0, 2, 1].into(), port: 80 });
                map.record(&NamedRecord::new(&record, &names));
            }
        };
        table.observe(0, Timestamp(1), &packet, &mut take);
        table.flush(&mut take);
        map
    }

    #[test]
    fn names_are_quoted() {
        let mut text = Vec::new();
        dot(&mut text, &map(r#"the "old" \ net"#)).expect("memory");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains(r#"n1 [label="the \"old\" \\ net"];"#) && text.contains("n0 -> n1;"), "{text}");
        let mut text = Vec::new();
        mermaid(&mut text, &map(r#"the "old" net"#)).expect("memory");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains(r#"n1["the #quot;old#quot; net"]"#) && text.contains("n0 --> n1"), "{text}");
    }
}
