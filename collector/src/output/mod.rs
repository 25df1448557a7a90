//! What people and programs read.

pub mod exporter;
pub mod flows;
pub mod graph;
mod layout;
pub mod map;
mod network_policy;
pub mod otterize;
pub mod pcapng;
pub mod queue;
mod svg;
pub mod window;

use std::io::{self, Write};

use self::otterize::{client_intents, clients, list};
use crate::shared::View;
use clap::ValueEnum;

/// What can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
pub enum Print {
    /// Who calls whom, as the Otterize CLI prints it
    List,
    /// ClientIntents of version v2beta1, as the Otterize CLI exports them, in YAML
    ClientIntents,
    /// The same of version v1alpha3
    ClientIntentsV1,
    /// The same of version v2beta1, in JSON
    ClientIntentsJson,
    /// Edges with their counts, as JSON
    Map,
    /// Edges for graphviz
    Dot,
    /// Edges for Markdown
    Mermaid,
    /// Edges as a picture, for browsers
    Svg,
    /// NetworkPolicies that allow what was seen, in YAML. Review them before you apply them
    NetworkPolicy,
    /// A JSON object per flow and direction and line, with the field names of NetObserv
    Flows,
    /// Nothing: the map is read over HTTP
    Nothing,
}

impl Print {
    /// Whether it is a form of the map.
    pub const fn is_of_map(self) -> bool {
        !matches!(self, Self::Flows | Self::Nothing)
    }

    /// The media type of this form of the map.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::ClientIntents | Self::ClientIntentsV1 | Self::NetworkPolicy => "application/yaml",
            Self::ClientIntentsJson | Self::Map => "application/json",
            Self::Svg => "image/svg+xml",
            Self::Dot => "text/vnd.graphviz; charset=utf-8",
            Self::List | Self::Mermaid | Self::Flows | Self::Nothing => "text/plain; charset=utf-8",
        }
    }

    /// Writes the map in this form.
    ///
    /// # Errors
    /// If it cannot be written, or if the map is too large for this form: [`io::ErrorKind::InvalidInput`].
    pub fn write(self, out: &mut impl Write, view: &View) -> io::Result<()> {
        let map = &view.map;
        match self {
            Self::List => list::write(out, &clients(map)),
            Self::ClientIntents => client_intents::yaml_v2(out, &clients(map)),
            Self::ClientIntentsV1 => client_intents::yaml_v1(out, &clients(map)),
            Self::ClientIntentsJson => client_intents::json(out, &clients(map)),
            Self::Map => map::write(out, map),
            Self::Dot => graph::dot(out, map),
            Self::Mermaid => graph::mermaid(out, map),
            Self::Svg => svg::write(out, map),
            Self::NetworkPolicy => network_policy::write(out, view),
            Self::Flows | Self::Nothing => Ok(()),
        }
    }
}
