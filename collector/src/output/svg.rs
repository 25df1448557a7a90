//! The map as a picture for browsers and documents: SVG, without scripts and without anything that is loaded from elsewhere.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use podtap_flow::map::{Map, Party};

use super::{
    graph::{graph, label},
    layout::columns,
};

/// Most boxes. More can be neither read nor laid out well.
const BOXES: usize = 60;
/// Most characters of a label in a box. The whole one is in its tooltip.
const LETTERS: usize = 40;

/// In pixels.
const LETTER: usize = 8;
const HEIGHT: usize = 32;
const ROW: usize = 52;
const GAP: usize = 96;
const MARGIN: usize = 24;
const NOTE: usize = 28;

/// What is drawn.
struct Picture {
    labels: Vec<String>,
    /// How many edges of the map each arrow stands for.
    arrows: BTreeMap<(usize, usize), usize>,
    note: Option<String>,
}

impl Picture {
    /// A box for each party, or for each namespace if these are too many.
    fn of(map: &Map) -> io::Result<Self> {
        let (parties, edges) = graph(map);
        if parties.len() <= BOXES {
            let labels = parties.keys().map(|party| label(party)).collect();
            return Ok(Self { labels, arrows: count(edges), note: None });
        }
        let mut groups: BTreeMap<String, usize> = parties.keys().map(|party| (group(party), 0)).collect();
        if groups.len() > BOXES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the map has {} workloads, services, nodes and names in {} groups: an SVG shows at most {BOXES}. \
                     Use --print dot (over HTTP, ?format=dot) with graphviz: dot -Tsvg",
                    parties.len(),
                    groups.len(),
                ),
            ));
        }
        groups.values_mut().enumerate().for_each(|(number, group)| *group = number);
        let of_party: Vec<usize> = parties.keys().map(|party| groups[&group(party)]).collect();
        let arrows = count(edges.into_iter().map(|(client, server)| (of_party[client], of_party[server])));
        let note = format!(
            "Each box is a namespace, or a group of others: the map has {} ends, more than {BOXES}",
            parties.len()
        );
        Ok(Self { labels: groups.into_keys().collect(), arrows, note: Some(note) })
    }
}

fn count(edges: impl IntoIterator<Item = (usize, usize)>) -> BTreeMap<(usize, usize), usize> {
    let mut arrows = BTreeMap::new();
    for edge in edges {
        *arrows.entry(edge).or_default() += 1;
    }
    arrows
}

fn group(party: &Party) -> String {
    match party {
        Party::Workload { namespace, .. } | Party::Service { namespace, .. } => format!("namespace {namespace}"),
        Party::Node { .. } => "nodes".to_owned(),
        Party::External { .. } => "external".to_owned(),
        Party::AnotherNamespace => "another namespace".to_owned(),
        Party::Other => "other".to_owned(),
    }
}

/// A box: left, top, and width.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    x: usize,
    y: usize,
    width: usize,
}

/// Writes the picture, from left to right.
///
/// # Errors
/// If the map is too large for one, also by namespaces: [`io::ErrorKind::InvalidInput`].
pub fn write(out: &mut impl Write, map: &Map) -> io::Result<()> {
    let Picture { labels, arrows, note } = Picture::of(map)?;
    let short: Vec<String> = labels.iter().map(|label| shorten(label)).collect();
    let edges: Vec<(usize, usize)> = arrows.keys().copied().collect();
    let columns = columns(labels.len(), &edges);
    let rows = columns.iter().map(Vec::len).max().unwrap_or_default();
    let top = MARGIN + if note.is_some() { NOTE } else { 0 };
    let mut places = vec![Place::default(); labels.len()];
    let mut x = MARGIN;
    for column in &columns {
        let letters = column.iter().map(|at| short[*at].chars().count()).max().unwrap_or_default();
        let width = letters * LETTER + 24;
        for (row, at) in column.iter().enumerate() {
            let y = top + (rows - column.len()) * ROW / 2 + row * ROW;
            places[*at] = Place { x, y, width };
        }
        x += width + GAP;
    }
    let least = note.as_ref().map_or(0, |note| note.chars().count() * LETTER + 2 * MARGIN);
    let width = (x.saturating_sub(GAP) + MARGIN).max(least);
    // Arrows back are below the boxes.
    let height = top + rows * ROW + MARGIN;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"monospace\" font-size=\"13\">\n<title>Who calls whom</title>\n\
         <defs><marker id=\"end\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\">\
         <path d=\"M0 0L8 4L0 8z\" fill=\"#555\"/></marker></defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>"
    )?;
    if let Some(note) = &note {
        writeln!(out, "<text x=\"{MARGIN}\" y=\"{MARGIN}\" fill=\"#555\">{}</text>", escape(note))?;
    }
    for ((client, server), count) in &arrows {
        let title = format!("{} calls {}", labels[*client], labels[*server]);
        let title = if note.is_some() { format!("{title} ({count} edges)") } else { title };
        writeln!(
            out,
            "<path d=\"{}\" fill=\"none\" stroke=\"#555\" marker-end=\"url(#end)\"><title>{}</title></path>",
            curve(places[*client], places[*server]),
            escape(&title)
        )?;
    }
    for ((label, short), Place { x, y, width }) in labels.iter().zip(&short).zip(places) {
        writeln!(
            out,
            "<g><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{HEIGHT}\" rx=\"4\" fill=\"#eef4fb\" \
             stroke=\"#369\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text></g>",
            escape(label),
            x + width / 2,
            y + HEIGHT / 2 + 4,
            escape(short)
        )?;
    }
    writeln!(out, "</svg>")
}

/// From the right of the client to the left of the server; below the boxes, if the server is not right of it.
fn curve(client: Place, server: Place) -> String {
    let (x, y) = (client.x + client.width, client.y + HEIGHT / 2);
    let (to_x, to_y) = (server.x, server.y + HEIGHT / 2);
    if to_x > x {
        let half = (to_x - x) / 2;
        return format!("M{x} {y}C{} {y} {} {to_y} {to_x} {to_y}", x + half, to_x - half);
    }
    let bottom = ROW + client.y.max(server.y);
    let from = client.x + client.width * 3 / 4;
    let to = server.x + server.width / 4;
    format!("M{from} {}C{from} {bottom} {to} {bottom} {to} {}", client.y + HEIGHT, server.y + HEIGHT)
}

fn shorten(label: &str) -> String {
    if label.chars().count() <= LETTERS {
        return label.to_owned();
    }
    label.chars().take(LETTERS - 1).chain(['…']).collect()
}

/// As text of XML, which has no control characters (XML 1.0, 2.2).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use podtap_flow::{
        map::{Edge, Traffic},
        names::Workload,
    };

    use super::*;

    fn workload(namespace: &str, name: &str) -> Party {
        let workload = Workload { kind: "Deployment".into(), name: name.into(), api_version: String::new() };
        Party::Workload { namespace: namespace.into(), workload }
    }

    fn map(edges: impl IntoIterator<Item = (Party, Party)>) -> Map {
        let mut map = Map::new(podtap_flow::map::Bounds::default());
        edges.into_iter().for_each(|(client, server)| map.restore(Edge { client, server }, Traffic::default()));
        map
    }

    fn svg(map: &Map) -> String {
        let mut text = Vec::new();
        write(&mut text, map).expect("memory");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn hostile_names_are_text() {
        let name = "</text><script>alert('1')</script>\u{0}\u{1b}]]>&amp;\u{ffff}\" onload=\"x";
        let text = svg(&map([(workload("shop", "web"), Party::External { name: Some(name.into()) })]));
        let document = roxmltree::Document::parse(&text).expect("well-formed XML");
        assert!(document.descendants().all(|node| node.tag_name().name() != "script"));
        let on_events =
            |node: roxmltree::Node<'_, '_>| node.attributes().any(|attribute| attribute.name().starts_with("on"));
        assert!(!document.descendants().any(on_events));
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
        let expected = "</text><script>alert('1')</script>\u{fffd}\u{fffd}]]>&amp;\u{fffd}\" onload=\"x";
        assert!(texts.contains(&expected), "{texts:?}");
        assert!(texts.contains(&format!("web.shop calls {expected}").as_str()), "{texts:?}");
    }

    #[test]
    fn each_end_has_a_box_and_each_edge_an_arrow() {
        let party = |name: &str| workload("shop", name);
        let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "c")];
        let text = svg(&map(edges.map(|(client, server)| (party(client), party(server)))));
        let document = roxmltree::Document::parse(&text).expect("well-formed XML");
        let count = |tag: &str| document.descendants().filter(|node| node.tag_name().name() == tag).count();
        assert_eq!((count("g"), count("path")), (3, 4 + 1), "with that of the marker");
        assert!(!text.contains("Each box is a namespace"));
        // All of it is inside of the picture.
        let size = |name: &str| document.root_element().attribute(name).and_then(|text| text.parse().ok());
        let (width, height): (usize, usize) = size("width").zip(size("height")).expect("numbers");
        for node in document.descendants().filter(|node| node.tag_name().name() == "path") {
            let path = node.attribute("d").expect("a path").replace(['M', 'C', 'L', 'z'], " ");
            let numbers: Vec<usize> = path.split_whitespace().map(|text| text.parse().expect("a number")).collect();
            assert!(
                numbers.chunks(2).all(|point| point[0] <= width && point[1] <= height),
                "{numbers:?} {width} {height}"
            );
        }
        assert!(svg(&map([])).contains("</svg>"));
    }

    #[test]
    fn a_large_map_is_folded_by_namespace_and_a_larger_one_refused() {
        let of = |namespaces: usize| {
            map((0..200).map(|number| {
                let namespace = format!("n{}", number % namespaces);
                (workload(&namespace, &format!("client{number}")), workload("shared", &format!("server{number}")))
            }))
        };
        let text = svg(&of(20));
        assert!(text.contains("Each box is a namespace") && text.contains("the map has 400 ends"), "{text}");
        assert!(text.contains("namespace n3 calls namespace shared (10 edges)"), "{text}");
        assert_eq!(text.matches("<g>").count(), 21);
        let error = write(&mut Vec::new(), &of(100)).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("--print dot"), "{error}");
    }
}
