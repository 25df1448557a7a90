//! Completion, with the names of the cluster. The only module that uses what is unstable in `clap_complete`.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Debug,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, ValueEnum};
use clap_complete::{
    CompletionCandidate,
    engine::complete,
    env::{Bash, EnvCompleter, Fish, Powershell, Zsh},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        core::v1::{Namespace, Node, Pod, Service},
    },
};
use kube::{Api, Client, Resource, api::ListParams};
use podtap_api::{ClusterPodTap, PodTap};
use serde::de::DeserializeOwned;

use crate::{
    Cli,
    connection::{Cluster, Connection},
    console::line,
    exit::{Exit, Failure, Outcome},
    tap::KEPT,
};

/// kubectl asks the executable of this name for the words after `kubectl podtap`.
pub const OF_KUBECTL: &str = "kubectl_complete-podtap";
/// This program.
const PROGRAM: &str = "kubectl-podtap";
/// Names the shell when the shell's function asks for candidates.
const VARIABLE: &str = "PODTAP_COMPLETE";
/// What kubectl reads last, as bits (cobra, `ShellCompDirective`): no space after the word, and no names of files.
const NO_SPACE: u8 = 2;
const NO_FILES: u8 = 4;
/// A person waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `completion`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// For which shell; kubectl: for `kubectl podtap` in every shell for which kubectl's own completion is set up
    #[arg(value_enum)]
    shell: Shell,
    /// With kubectl: make the link kubectl_complete-podtap beside this program
    #[arg(long)]
    install: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
    Kubectl,
}

impl Shell {
    fn completer(self) -> Option<&'static dyn EnvCompleter> {
        match self {
            Self::Bash => Some(&Bash),
            Self::Zsh => Some(&Zsh),
            Self::Fish => Some(&Fish),
            Self::Powershell => Some(&Powershell),
            Self::Kubectl => None,
        }
    }
}

/// Prints the function of a shell, or installs that of kubectl.
pub fn run(arguments: &Arguments) -> Outcome {
    let program = program().map_err(|error| Failure::error(format!("this program has no path: {error}")))?;
    let Some(completer) = arguments.shell.completer() else {
        let link = program.with_file_name(OF_KUBECTL);
        if arguments.install {
            install(&program, &link).map_err(|error| {
                Failure::error(format!(
                    "cannot make {}: {error}; make the link {OF_KUBECTL} to {} in a folder of PATH yourself",
                    link.display(),
                    program.display()
                ))
            })?;
        }
        return Ok(describe(&program, &link));
    };
    if arguments.install {
        return Err(Failure::usage(
            "--install is for kubectl: a shell reads this text from a file of its own, see docs/cli.md",
        ));
    }
    let program = program.to_string_lossy();
    completer
        .write_registration(VARIABLE, "kubectl_podtap", PROGRAM, &program, &mut io::stdout())
        .map_err(|error| Failure::error(error.to_string()))?;
    Ok(Exit::Done)
}

/// The path by which it was started, which may be a link in a folder of PATH.
fn program() -> io::Result<PathBuf> {
    let started = env::args_os().next().map(PathBuf::from).filter(|path| path.components().count() > 1);
    started.map_or_else(env::current_exe, std::path::absolute)
}

fn install(program: &Path, link: &Path) -> io::Result<()> {
    if link.exists() {
        return Ok(());
    }
    // One that leads nowhere.
    if fs::symlink_metadata(link).is_ok() {
        fs::remove_file(link)?;
    }
    #[cfg(unix)]
    return std::os::unix::fs::symlink(program.file_name().unwrap_or(program.as_os_str()), link);
    #[cfg(not(unix))]
    fs::copy(program, link.with_extension("exe")).map(drop)
}

fn describe(program: &Path, link: &Path) -> Exit {
    let folder = link.parent().unwrap_or(link);
    let is_on_path = env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|entry| entry == folder));
    let exists = fs::symlink_metadata(link).is_ok();
    if exists {
        line(&format!("{} exists", link.display()));
    } else {
        line(&format!("ln -s {} {}", program.display(), link.display()));
    }
    if !is_on_path {
        anstream::eprintln!("PATH lacks {}: kubectl finds plugins and their completion there only", folder.display());
    }
    Exit::Done
}

/// Answers a shell, or kubectl; whether one has asked.
pub fn answer() -> bool {
    let words: Vec<OsString> = env::args_os().collect();
    let name = words.first().map(PathBuf::from);
    if name.as_deref().and_then(Path::file_stem).is_some_and(|name| name == OF_KUBECTL) {
        let mut directive = NO_FILES;
        for candidate in candidates(words) {
            let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
            let (value, help) = (candidate.get_value().to_string_lossy(), help.lines().next().unwrap_or_default());
            println!("{value}\t{help}");
            if value.ends_with('/') {
                directive |= NO_SPACE;
            }
        }
        println!(":{directive}");
        return true;
    }
    let environment = clap_complete::CompleteEnv::with_factory(Cli::command).var(VARIABLE).bin(PROGRAM);
    // The shell would show an error between the words that the user types.
    environment.try_complete(words, None).unwrap_or(true)
}

fn candidates(words: Vec<OsString>) -> Vec<CompletionCandidate> {
    let mut command = Cli::command();
    let last = words.len().saturating_sub(1);
    complete(&mut command, words, last, None).unwrap_or_default()
}

/// The cluster that the words on the command line so far name.
fn connection() -> Connection {
    // Those of a shell are after "--".
    let words: Vec<OsString> = env::args_os().collect();
    let start = words.iter().position(|word| word == "--");
    let words = start.map_or(&words[..], |start| &words[start + 1..]);
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(words);
    matches.ok().and_then(|matches| Connection::from_arg_matches(&matches).ok()).unwrap_or_default()
}

/// What a question to the cluster returns in time; nothing if that fails: a message would appear between the words that the user types.
fn ask<T: Default, F: Future<Output = Option<T>>>(question: impl FnOnce(Cluster) -> F) -> T {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return T::default() };
    let answer = async {
        let cluster = connection().open().await.ok()?;
        question(cluster).await
    };
    let in_time = runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
    in_time.ok().flatten().unwrap_or_default()
}

/// Names of these objects of an API, with a prefix.
async fn names<K>(api: Api<K>, which: &ListParams, prefix: &str) -> Option<Vec<String>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let list = api.list_metadata(which).await.ok()?;
    Some(list.items.into_iter().filter_map(|object| Some(format!("{prefix}{}", object.metadata.name?))).collect())
}

async fn names_of<K>(cluster: &Cluster, prefix: &str) -> Option<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    names(Api::<K>::namespaced(cluster.client.clone(), &cluster.namespace), &ListParams::default(), prefix).await
}

async fn names_of_cluster<K>(client: Client, prefix: &str) -> Option<Vec<String>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    names(Api::<K>::all(client), &ListParams::default(), prefix).await
}

fn of_names(names: Vec<String>) -> Vec<CompletionCandidate> {
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// Names of namespaces.
pub fn namespaces() -> Vec<CompletionCandidate> {
    of_names(ask(|cluster| names_of_cluster::<Namespace>(cluster.client, "")))
}

/// Names of contexts.
pub fn contexts() -> Vec<CompletionCandidate> {
    let contexts = connection().kubeconfig().map(|kubeconfig| kubeconfig.contexts).unwrap_or_default();
    of_names(contexts.into_iter().map(|context| context.name).collect())
}

/// Names of taps.
pub fn taps() -> Vec<CompletionCandidate> {
    of_names(ask(|cluster| async move {
        let mut all = names_of::<PodTap>(&cluster, "").await.unwrap_or_default();
        all.extend(names_of_cluster::<ClusterPodTap>(cluster.client, "cptap/").await.unwrap_or_default());
        Some(all)
    }))
}

/// Names of captures that run without their client, too.
pub fn captures() -> Vec<CompletionCandidate> {
    of_names(ask(|cluster| async move {
        let taps = Api::<PodTap>::namespaced(cluster.client, &cluster.namespace);
        names(taps, &ListParams::default().labels(KEPT), "").await
    }))
}

/// What `explain` explains.
pub fn explainable(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let found = match current.split_once('/') {
        Some(("pod" | "pods" | "po", _)) => {
            of_names(ask(|cluster| async move { names_of::<Pod>(&cluster, "pod/").await }))
        }
        Some(("node" | "nodes" | "no", _)) => {
            of_names(ask(|cluster| names_of_cluster::<Node>(cluster.client, "node/")))
        }
        _ => {
            let mut all = taps();
            all.extend(["pod/", "node/"].map(CompletionCandidate::new));
            all
        }
    };
    beginning_with(&current, found)
}

/// What `create` taps.
pub fn targets(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let kind = current.split_once('/').map(|(kind, _)| kind.to_owned());
    let found = match kind.as_deref() {
        None => ["pod/", "deploy/", "sts/", "ds/", "svc/"].map(str::to_owned).to_vec(),
        Some(kind) => ask(|cluster| async move {
            let prefix = format!("{kind}/");
            match kind {
                "pod" => names_of::<Pod>(&cluster, &prefix).await,
                "deploy" => names_of::<Deployment>(&cluster, &prefix).await,
                "sts" => names_of::<StatefulSet>(&cluster, &prefix).await,
                "ds" => names_of::<DaemonSet>(&cluster, &prefix).await,
                "svc" => names_of::<Service>(&cluster, &prefix).await,
                _ => None,
            }
        }),
    };
    beginning_with(&current, of_names(found))
}

/// Where `create` mirrors to.
pub fn destinations(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let found = match current.split_once('/') {
        Some(("node", _)) => ask(|cluster| names_of_cluster::<Node>(cluster.client, "node/")),
        Some(("pod", _)) => ask(|cluster| async move { names_of::<Pod>(&cluster, "pod/").await }),
        _ => ["node/", "pod/", "pods/", "collector"].map(str::to_owned).to_vec(),
    };
    beginning_with(&current, of_names(found))
}

fn beginning_with(current: &str, mut all: Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    all.retain(|candidate| candidate.get_value().to_string_lossy().starts_with(current));
    all
}
