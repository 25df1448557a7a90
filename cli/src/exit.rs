//! How the program ends: exit codes, and errors that say what to do.

use std::{error::Error, fmt, process::ExitCode};

/// Exit codes. Scripts depend on them: `docs/cli.md` lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    #[default]
    Done = 0,
    /// The cluster cannot be reached, does not serve PodTap's kinds, or answers with an error.
    Error = 1,
    /// The command line is invalid, or a question could not be asked. Clap uses the same code.
    Usage = 2,
    /// Some of the pods cannot be tapped, some nodes have not answered, or `doctor` has found errors.
    Partly = 3,
    /// Refused, or there is no such object, or no pod matches.
    Refused = 4,
    /// The user lacks a right.
    NotPermitted = 5,
    /// Not in time. As timeout(1) does.
    TimedOut = 124,
    /// SIGINT: 128 and its number, as shells report it.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// What happened, why, and what to do.
    pub message: String,
}

/// What a command returns.
pub type Outcome<T = Exit> = Result<T, Failure>;

impl Failure {
    /// A failure with this exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// The command line is invalid.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// An error of this program or of the cluster.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Exit::Error, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::error(with_causes(&error)) };
        let message = &status.message;
        match status.code {
            401 => Self::error(format!(
                "the API server rejects the credentials of this kubeconfig user ({message}): log in again, or choose another --context or --user"
            )),
            // The message names user, verb and resource.
            403 => Self::new(
                Exit::NotPermitted,
                format!(
                    "{message}. To see what you may do: kubectl auth can-i --list; the roles are in {}",
                    page("install.md", "3-who-may-tap")
                ),
            ),
            // Of an object, the API server gives details; of a kind that it does not serve, none.
            404 if status.details.as_ref().is_none_or(|details| details.name.is_empty()) => Self::error(format!(
                "this cluster does not serve the kinds of {} ({message}): install PodTap, see {}",
                podtap_api::GROUP,
                page("install.md", "")
            )),
            400 | 404 | 409 | 422 => Self::new(Exit::Refused, message.clone()),
            code => Self::error(format!("the API server answered {code}: {message}")),
        }
    }
}

/// An error with all its causes in one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors repeat their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The address of a page of the documentation, and of a section in it unless that is empty.
pub fn page(file: &str, section: &str) -> String {
    let separator = if section.is_empty() { "" } else { "#" };
    format!("{}/blob/main/docs/{file}{separator}{section}", env!("CARGO_PKG_REPOSITORY"))
}

/// The address of the page about a reason.
pub fn page_of(reason: &str) -> String {
    page("troubleshooting.md", &reason.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_error(code: u16, name: &str) -> Failure {
        let status = serde_json::json!({"code": code, "message": "why", "details": {"name": name}});
        let status = serde_json::from_value(status).expect("a status");
        kube::Error::Api(Box::new(status)).into()
    }

    #[test]
    fn errors_of_the_api_server_have_exit_codes() {
        for (code, name, exit) in [
            (401, "", Exit::Error),
            (403, "web", Exit::NotPermitted),
            (404, "web", Exit::Refused),
            (404, "", Exit::Error),
            (409, "web", Exit::Refused),
            (422, "web", Exit::Refused),
            (500, "web", Exit::Error),
        ] {
            let failure = api_error(code, name);
            assert_eq!(failure.exit, exit, "{code} {name}");
            assert!(failure.message.contains("why"), "{failure}");
        }
    }

    #[test]
    fn pages_exist() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let has = |file: &str, heading: &str| {
            std::fs::read_to_string(docs.join(file)).is_ok_and(|text| text.lines().any(|line| line == heading))
        };
        assert!(has("install.md", "# Install") && has("install.md", "## 3. Who may tap"));
        assert!(page("install.md", "3-who-may-tap").ends_with("/docs/install.md#3-who-may-tap"));
        for reason in podtap_model::Reason::ALL {
            assert!(has("troubleshooting.md", &format!("## {reason}")), "{reason}");
        }
        assert!(page_of("NoProbeFromNode").ends_with("/docs/troubleshooting.md#noprobefromnode"));
    }
}
