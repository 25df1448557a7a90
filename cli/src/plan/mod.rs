//! `plan`: what a tap would do. It reads, asks which rights the user has, and has the API server try the object (`dryRun=All`).

mod place;
mod report;
mod rights;
mod rows;
mod text;
mod wire;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Arg, Args, ValueEnum};
use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use podtap_api::PodTap;
use serde_json::Value;

use crate::{
    connection::{Cluster, Connection},
    console::{data, in_thread},
    exit::{Exit, Failure, Outcome},
    manifest,
    plan::{
        place::{Place, find},
        report::{By, Denial, Known, Report},
    },
    pods::{Cause, Surroundings, if_permitted, matching},
    tap::{self, Kind, MANAGER, Tap, TapName},
    tap_flags::{TapFlags, apply, is_of_the_same_targets, tap_of},
};

/// Arguments of `plan`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    requested: Requested,
    /// File with a PodTap or a ClusterPodTap, instead of the flags of create; -: standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How the plan is printed; short: only what is not as it should be
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Ends with the exit code 3 if there are warnings
    #[arg(long)]
    strict: bool,
}

/// The flags of `create`. Without a destination, there are none: a word is then the name of a tap that exists.
#[derive(Args, Clone, Debug)]
#[command(mut_args(only_with_a_destination))]
struct Requested {
    #[command(flatten)]
    tap: TapFlags,
}

fn only_with_a_destination(argument: Arg) -> Arg {
    let argument = argument.conflicts_with("file");
    match argument.get_id().as_str() {
        "words" => argument,
        "to" => argument.required(false),
        _ => argument.requires("to"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Short,
}

/// What is planned.
struct Subject {
    /// As the API server would store it, or as it was requested if that is refused.
    tap: Tap,
    /// Whether it exists with this spec.
    exists: bool,
    denials: Vec<Denial>,
    warnings: Vec<String>,
}

/// Prints a plan.
pub async fn run(arguments: Arguments, connection: &Connection) -> Outcome {
    let flags = &arguments.requested.tap;
    let (cluster, subject) = match (&arguments.file, &flags.words[..]) {
        (Some(path), _) => {
            let object = object(&read(path).await?)?;
            let cluster = connection.open().await?;
            let subject = of_file(&cluster, connection, object).await?;
            (cluster, subject)
        }
        (None, words) if flags.mirror.to.is_empty() => {
            let name = existing(words)?;
            let cluster = connection.open().await?;
            let tap = tap::get(&cluster, &name).await?;
            (cluster, Subject { tap, exists: true, denials: Vec::new(), warnings: Vec::new() })
        }
        _ => of_flags(flags, connection).await?,
    };
    let (tap, known) = known(&cluster, subject).await?;
    let report = Report::of(&tap, known);
    match arguments.output {
        Format::Table => data(&report.table()),
        Format::Short => data(&report.short()),
        Format::Json => {
            let document = serde_json::to_value(&report).map_err(|error| Failure::error(error.to_string()))?;
            data(&manifest::json(&document));
        }
    }
    Ok(report.exit(arguments.strict))
}

/// The tap that a word alone names.
fn existing(words: &[String]) -> Outcome<TapName> {
    match words {
        [word] => word
            .parse()
            .map_err(|error| Failure::usage(format!("{error}; for pods that no tap mirrors yet, add --to DEST"))),
        [] => Err(Failure::usage("name a TARGET and --to DEST, the NAME of a tap that exists, or -f FILE")),
        _ => Err(Failure::usage("a TARGET needs a destination: add --to DEST")),
    }
}

async fn read(path: &Path) -> Outcome<String> {
    let read = if path.as_os_str() == "-" {
        in_thread(|| io::read_to_string(io::stdin())).await.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
    } else {
        fs::read_to_string(path)
    };
    read.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))
}

/// The tap of a document, in YAML or JSON.
fn object(text: &str) -> Outcome<(Kind, Value)> {
    let value: Value = serde_saphyr::from_str(text)
        .map_err(|error| Failure::usage(format!("the file has to have one object in YAML or JSON: {error}")))?;
    let version = value["apiVersion"].as_str().unwrap_or_default();
    let kind = match value["kind"].as_str() {
        Some("PodTap") => Kind::PodTap,
        Some("ClusterPodTap") => Kind::ClusterPodTap,
        _ => return Err(Failure::usage("the file has neither a PodTap nor a ClusterPodTap")),
    };
    let own = kind.resource().api_version;
    if version != own {
        return Err(Failure::usage(format!("the file has the apiVersion {version:?}, and not {own}")));
    }
    Ok((kind, value))
}

/// A tap from a file, as `kubectl apply` would store it.
async fn of_file(cluster: &Cluster, connection: &Connection, (kind, mut value): (Kind, Value)) -> Outcome<Subject> {
    let written = value["metadata"]["namespace"].as_str().map(str::to_owned);
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(Failure::usage("the tap in the file has no metadata.name"));
    }
    let namespace = match (kind, written) {
        (Kind::ClusterPodTap, _) => None,
        (Kind::PodTap, Some(written)) if connection.namespace.as_ref().is_some_and(|flag| *flag != written) => {
            return Err(Failure::usage(format!("the tap in the file is of the namespace {written}: leave out -n")));
        }
        (Kind::PodTap, written) => Some(written.unwrap_or_else(|| cluster.namespace.clone())),
    };
    if let Some(namespace) = &namespace {
        value["metadata"]["namespace"] = Value::from(namespace.clone());
    }
    if let Some(document) = value.as_object_mut() {
        document.remove("status");
    }
    let mut object: DynamicObject =
        serde_json::from_value(value.clone()).map_err(|error| Failure::usage(format!("the file: {error}")))?;
    let api = kind.api(cluster, namespace.as_deref());
    let before = if_permitted(api.get_opt(&name).await)?.flatten();
    // By it, what exists of the tap is known.
    object.metadata.uid = before.as_ref().and_then(|before| before.metadata.uid.clone());
    let local = Tap::of(kind, object)?;
    // Another field manager may own the fields, such as kubectl apply.
    let parameters = PatchParams { dry_run: true, ..PatchParams::apply(MANAGER).force().validation_strict() };
    let patch = Patch::Apply(value);
    let tried = async { Tap::of(kind, api.patch(&name, &parameters, &patch).await?) };
    let before = before.map(|before| Tap::of(kind, before)).transpose()?;
    tried_by(cluster, local, before, tried).await
}

/// A tap from the flags of `create`, as that would store it.
async fn of_flags(flags: &TapFlags, connection: &Connection) -> Outcome<(Cluster, Subject)> {
    let (given, target) = flags.target()?;
    let name = given.clone().unwrap_or_else(|| target.tap_name());
    let mirror = flags.mirror.clone().spec()?;
    let cluster = connection.open().await?;
    let selection = target.selection(&cluster).await?;
    let mut tap = tap_of(&name, Some(&cluster.namespace), flags.spec(selection, mirror));
    let api: Api<PodTap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let before = if_permitted(api.get_opt(&name).await)?.flatten();
    if given.is_none() {
        is_of_the_same_targets(&tap, before.as_ref())?;
    }
    tap.metadata.uid = before.as_ref().and_then(|before| before.metadata.uid.clone());
    let local = Tap::Namespaced(Box::new(tap.clone()));
    let tried = async { Ok(Tap::Namespaced(Box::new(apply(&api, &tap, true).await?))) };
    let before = before.map(|before| Tap::Namespaced(Box::new(before)));
    let subject = tried_by(&cluster, local, before, tried).await?;
    Ok((cluster, subject))
}

/// What the API server makes of a tap, if the user has the rights that writing it takes. `before` is the one of its name that exists.
async fn tried_by(
    cluster: &Cluster,
    local: Tap,
    before: Option<Tap>,
    tried: impl Future<Output = Outcome<Tap>>,
) -> Outcome<Subject> {
    let changed = || format!("{local} exists, and would be changed to this");
    let mut warnings: Vec<String> = before.iter().map(|_| changed()).collect();
    let mut denials = rights::missing(cluster, &local, before.is_some()).await?;
    if !denials.is_empty() {
        warnings.push("the API server has not tried the object: that takes the rights that are missing".to_owned());
        return Ok(Subject { tap: local, exists: false, denials, warnings });
    }
    match tried.await {
        Ok(tap) => match before {
            Some(before) if before.has_spec_of(&tap) => {
                Ok(Subject { tap: before, exists: true, denials, warnings: Vec::new() })
            }
            _ => Ok(Subject { tap: tap.without_status(), exists: false, denials, warnings }),
        },
        Err(failure) if failure.exit == Exit::Error => Err(failure),
        Err(failure) => {
            let cause = Cause { reason: String::new(), message: failure.message };
            denials.push(Denial { by: By::Admission, cause });
            Ok(Subject { tap: local, exists: false, denials, warnings })
        }
    }
}

/// Reads what else decides.
async fn known(cluster: &Cluster, subject: Subject) -> Outcome<(Tap, Known)> {
    let Subject { tap, exists, denials, warnings } = subject;
    let (around, pods) = tokio::try_join!(Surroundings::read(cluster), matching(cluster, &tap))?;
    let mut places: Vec<Place> = Vec::new();
    for destination in &tap.mirror().destinations {
        places.push(find(cluster, tap.namespace(), destination, &around).await?);
    }
    let rivals = if exists { None } else { if_permitted(tap::list(cluster, tap.kind(), tap.namespace()).await)? };
    let asks_for_vni = tap.mirror().vxlan.as_ref().is_some_and(|vxlan| vxlan.vni.is_some());
    let vni_holders = if asks_for_vni && !exists {
        let (namespaced, of_cluster) =
            tokio::join!(tap::list(cluster, Kind::PodTap, None), tap::list(cluster, Kind::ClusterPodTap, None));
        let all = [if_permitted(namespaced)?, if_permitted(of_cluster)?];
        all.into_iter().flatten().flatten().collect()
    } else {
        Vec::new()
    };
    let known = Known { exists, pods, around, places, rivals, vni_holders, denials, warnings };
    Ok((tap, known))
}

#[cfg(test)]
mod tests;
