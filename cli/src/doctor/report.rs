//! What the checks have found, and how it is printed.

use std::iter;

use clap::builder::styling::Style;
use serde::Serialize;

use crate::{
    console::{BAD, CAUTION, GOOD, counted, plain, styled},
    exit::Exit,
};

/// Checks that belong together, in the order in which they are printed: each can explain those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// The API server, the kinds, and what the user may do.
    Cluster,
    /// Whether an installation would work.
    Installation,
    /// What PodTap consists of.
    ControlPlane,
    /// The nodes, their kernels and their helper pods.
    Nodes,
    /// Whether mirrored frames reach other nodes.
    Network,
    /// Everything else that taps report.
    Taps,
}

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Not known, and not needed.
    Unknown,
    /// Something to be aware of.
    Warning,
    /// Something does not work.
    Error,
    /// The user may not read what tells.
    NotPermitted,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub group: Group,
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// The page about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
}

impl Finding {
    /// A finding of this level.
    pub fn new(group: Group, level: Level, message: impl AsRef<str>) -> Self {
        Self { group, level, message: plain(message.as_ref()), hints: Vec::new(), page: None }
    }

    /// Something is as it should be.
    pub fn ok(group: Group, message: impl AsRef<str>) -> Self {
        Self::new(group, Level::Ok, message)
    }

    /// Something does not work.
    pub fn error(group: Group, message: impl AsRef<str>) -> Self {
        Self::new(group, Level::Error, message)
    }

    /// Something to be aware of.
    pub fn warning(group: Group, message: impl AsRef<str>) -> Self {
        Self::new(group, Level::Warning, message)
    }

    /// With what to do, which may have several lines.
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.hints.extend(hint.as_ref().lines().map(plain));
        self
    }

    /// With the address of a page.
    pub fn page(mut self, page: String) -> Self {
        self.page = Some(page);
        self
    }

    fn lines(&self) -> Vec<String> {
        let (mark, style) = self.level.mark();
        let details = self.hints.iter().cloned().chain(self.page.iter().map(|page| format!("See {page}")));
        let title = format!("{} {}", styled(style, mark), self.message);
        iter::once(title).chain(details.map(|line| format!("    {line}"))).collect()
    }
}

impl Level {
    fn mark(self) -> (&'static str, Style) {
        match self {
            Self::Ok => ("√", GOOD),
            Self::Unknown => ("-", Style::new()),
            Self::Warning => ("‼", CAUTION),
            Self::Error => ("×", BAD),
            Self::NotPermitted => ("?", CAUTION),
        }
    }
}

impl Group {
    fn title(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Installation => "installation",
            Self::ControlPlane => "control plane",
            Self::Nodes => "nodes",
            Self::Network => "network",
            Self::Taps => "taps",
        }
    }
}

/// All findings.
#[derive(Debug, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Sorts them by group.
    pub fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.group);
        Self { findings }
    }

    /// Errors count most, then what could not be read.
    pub fn exit(&self) -> Exit {
        match (self.count(Level::Error), self.count(Level::NotPermitted)) {
            (0, 0) => Exit::Done,
            (0, _) => Exit::NotPermitted,
            _ => Exit::Partly,
        }
    }

    /// For people: all findings, or only those that are not as they should be.
    pub fn text(&self, all: bool) -> String {
        let mut lines = Vec::new();
        for group in self.findings.chunk_by(|a, b| a.group == b.group) {
            let shown = group.iter().filter(|finding| all || finding.level != Level::Ok);
            let shown: Vec<String> = shown.flat_map(Finding::lines).collect();
            if !shown.is_empty() {
                lines.push(group[0].group.title().to_owned());
                lines.extend(shown);
                lines.push(String::new());
            }
        }
        lines.push(self.summary());
        lines.join("\n") + "\n"
    }

    fn summary(&self) -> String {
        let mut parts = vec![
            format!("{} ok", self.count(Level::Ok)),
            counted(self.count(Level::Error), "error"),
            counted(self.count(Level::Warning), "warning"),
        ];
        for (level, text) in [(Level::Unknown, "not known"), (Level::NotPermitted, "not permitted")] {
            match self.count(level) {
                0 => {}
                count => parts.push(format!("{count} {text}")),
            }
        }
        parts.join(", ")
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_grouped_and_counted() {
        let ok = Finding::ok(Group::Nodes, "n1 works");
        let error = Finding::error(Group::Cluster, "a \u{1b} b").hint("do\nthis").page("https://x".to_owned());
        let report = Report::new(vec![ok.clone(), error]);
        assert_eq!(
            anstream::adapter::strip_str(&report.text(true)).to_string(),
            "cluster\n× a \u{fffd} b\n    do\n    this\n    See https://x\n\nnodes\n√ n1 works\n\n1 ok, 1 error, 0 warnings\n"
        );
        assert!(!report.text(false).contains("n1 works"));
        assert_eq!(report.exit(), Exit::Partly);
        assert_eq!(Report::new(vec![ok]).exit(), Exit::Done);
    }

    #[test]
    fn only_errors_and_what_is_not_permitted_change_the_exit_code() {
        for (level, exit) in [
            (Level::Ok, Exit::Done),
            (Level::Unknown, Exit::Done),
            (Level::Warning, Exit::Done),
            (Level::Error, Exit::Partly),
            (Level::NotPermitted, Exit::NotPermitted),
        ] {
            let report = Report::new(vec![Finding::new(Group::Taps, level, "x")]);
            assert_eq!(report.exit(), exit, "{level:?}");
        }
    }
}
