//! Wireshark's list of interfaces: this program, in Wireshark's folder for external capture programs, is an interface there (extcap(4)).
//!
//! Wireshark asks for interfaces, link types and settings, and then starts `capture` with the settings of the user and a FIFO.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::exit::page;

/// The name of the interface.
const INTERFACE: &str = "podtap";

/// What Wireshark calls.
#[derive(Parser, Debug, Default)]
#[command(disable_help_flag = true, disable_version_flag = true, no_binary_name = true)]
#[expect(clippy::struct_excessive_bools, reason = "they are Wireshark's")]
struct Arguments {
    #[arg(long)]
    extcap_interfaces: bool,
    #[arg(long)]
    extcap_version: Option<String>,
    #[arg(long)]
    extcap_interface: Option<String>,
    #[arg(long)]
    extcap_dlts: bool,
    #[arg(long)]
    extcap_config: bool,
    #[arg(long)]
    extcap_capture_filter: Option<String>,
    #[arg(long)]
    capture: bool,
    #[arg(long)]
    fifo: Option<PathBuf>,
    #[arg(long)]
    target: Option<String>,
    #[arg(long)]
    namespace: Option<String>,
    #[arg(long)]
    context: Option<String>,
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// To print this.
    Print(String),
    /// To run this command line.
    Run(Vec<String>),
    /// To refuse the call, with this message.
    Refuse(String),
}

/// The call of Wireshark, if this is one.
pub fn call(words: &[String]) -> Option<Call> {
    let arguments = words.get(1..)?;
    if !arguments.first()?.starts_with("--extcap-")
        && !arguments.iter().any(|word| word.starts_with("--extcap-interface"))
    {
        return None;
    }
    Some(match Arguments::try_parse_from(arguments) {
        Ok(arguments) => answer(&arguments),
        Err(error) => Call::Refuse(error.to_string()),
    })
}

fn answer(arguments: &Arguments) -> Call {
    let version = env!("CARGO_PKG_VERSION");
    if arguments.extcap_interfaces {
        let help = page("cli.md", "capture");
        return Call::Print(format!(
            "extcap {{version={version}}}{{help={help}}}\ninterface {{value={INTERFACE}}}{{display=Pods of Kubernetes (PodTap)}}\n"
        ));
    }
    if arguments.extcap_interface.as_deref() != Some(INTERFACE) {
        return Call::Refuse(format!("there is one interface: {INTERFACE}"));
    }
    if arguments.extcap_dlts {
        return Call::Print("dlt {number=1}{name=EN10MB}{display=Ethernet}\n".to_owned());
    }
    if arguments.extcap_config {
        return Call::Print(settings());
    }
    let (true, Some(fifo)) = (arguments.capture, &arguments.fifo) else {
        return Call::Refuse(
            "call it with --extcap-interfaces, --extcap-dlts, --extcap-config or --capture --fifo PATH".to_owned(),
        );
    };
    let Some(target) = arguments.target.clone().filter(|target| !target.is_empty()) else {
        return Call::Refuse(
            "choose the pods: in the settings of the interface, the target, such as deploy/web".to_owned(),
        );
    };
    Call::Run(command(arguments, fifo, target))
}

/// The settings that Wireshark shows for the interface.
fn settings() -> String {
    let settings = [
        ("target", "string", "Pods", "deploy/NAME, sts/NAME, ds/NAME, rs/NAME, job/NAME, svc/NAME or pod/NAME"),
        ("namespace", "string", "Namespace", "Default: that of the context"),
        ("context", "string", "Context", "Context of the kubeconfig. Default: the current one"),
        ("kubeconfig", "fileselect", "Kubeconfig", "Default: $KUBECONFIG, or ~/.kube/config"),
    ];
    let line = |(number, (name, kind, display, tooltip)): (usize, (&str, &str, &str, &str))| {
        let required = if name == "target" { "{required=true}" } else { "" };
        format!(
            "arg {{number={number}}}{{call=--{name}}}{{display={display}}}{{tooltip={tooltip}}}{{type={kind}}}{required}\n"
        )
    };
    settings.into_iter().enumerate().map(line).collect()
}

/// The words of `capture`.
fn command(arguments: &Arguments, fifo: &Path, target: String) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    // Wireshark shows what is printed as an error.
    let mut words = ["podtap", "capture", "--quiet"].map(str::to_owned).to_vec();
    words.extend([target, "-y".to_owned(), format!("--write={}", path(fifo))]);
    let settings = [
        ("filter", arguments.extcap_capture_filter.clone()),
        ("namespace", arguments.namespace.clone()),
        ("context", arguments.context.clone()),
        ("kubeconfig", arguments.kubeconfig.as_deref().map(path)),
    ];
    let given = settings.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    words.extend(given.map(|(name, value)| format!("--{name}={value}")));
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::Cli;

    fn of(words: &[&str]) -> Option<Call> {
        let all: Vec<String> = [&["podtap"][..], words].concat().into_iter().map(str::to_owned).collect();
        call(&all)
    }

    #[test]
    fn wireshark_learns_what_there_is() {
        let printed = |words: &[&str]| match of(words) {
            Some(Call::Print(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(printed(&["--extcap-interfaces", "--extcap-version=4.0"]).contains("\ninterface {value=podtap}"));
        assert!(printed(&["--extcap-interface", "podtap", "--extcap-dlts"]).starts_with("dlt {number=1}"));
        let settings = printed(&["--extcap-interface", "podtap", "--extcap-config"]);
        assert_eq!((settings.lines().count(), settings.contains("{call=--target}")), (4, true));
        assert!(matches!(of(&["--extcap-interface", "eth0", "--extcap-dlts"]), Some(Call::Refuse(_))));
        assert_eq!(of(&["capture", "web"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_capture_is_the_verb_with_the_settings() {
        let words = ["--capture", "--extcap-interface", "podtap", "--fifo", "/tmp/f", "--target", "deploy/web"];
        let more = ["--extcap-capture-filter", "tcp port 80", "--namespace", "shop", "--context", ""];
        let Some(Call::Run(run)) = of(&[&words[..], &more].concat()) else { panic!("it captures") };
        let expected = [
            "podtap",
            "capture",
            "--quiet",
            "deploy/web",
            "-y",
            "--write=/tmp/f",
            "--filter=tcp port 80",
            "--namespace=shop",
        ];
        assert_eq!(run, expected);
        assert!(Cli::try_parse_from(run).is_ok());
        assert!(matches!(of(&words[..5]), Some(Call::Refuse(message)) if message.contains("deploy/web")));
    }
}
