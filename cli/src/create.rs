//! `create`: a tap from flags, and its way to Ready.

use std::time::Duration;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use podtap_api::{MirrorSpec, PodTap, PodTapSpec};
use serde_json::Value;

use crate::{
    complete,
    connection::{Cluster, Connection, duration},
    console::{Console, ask, data, line, warn},
    exit::{Exit, Failure, Outcome},
    manifest,
    mirror::MirrorFlags,
    ready::wait_until_ready,
    tap::{Kind, MANAGER, REQUESTED_BY, Tap},
    target::{PodFlags, Selection, Target},
};

/// Arguments of `create`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// NAME of the tap, which is made from the target if it is left out, and TARGET: pod/NAME, deploy/NAME, sts/NAME, ds/NAME, rs/NAME,
    /// job/NAME or svc/NAME. A name alone is that of a pod
    #[arg(value_names = ["NAME", "TARGET"], num_args = 0..=2, add = ArgValueCompleter::new(complete::targets))]
    words: Vec<String>,
    #[command(flatten)]
    pods: PodFlags,
    #[command(flatten)]
    mirror: MirrorFlags,
    /// How long to wait until the tap is Ready and frames arrive. 0: do not wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    wait: Duration,
    /// Change nothing: print what would be sent (client), or what the API server makes of it (server)
    #[arg(long, value_name = "WHO", value_enum, default_value_t = DryRun::None)]
    dry_run: DryRun,
    /// Print the tap
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Format>,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DryRun {
    None,
    Client,
    Server,
}

/// How an object is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// kind and name.
    Name,
}

impl Arguments {
    /// The name, if there is one, and the target.
    fn target(&self) -> Outcome<(Option<String>, Target)> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let without_target = self.pods.selection().map(Target::Selected);
        let (name, target) = match (words.as_slice(), without_target) {
            ([], Some(target)) => (None, target),
            ([name], Some(target)) => (Some(*name), target),
            ([target], None) => (None, target.parse().map_err(Failure::usage)?),
            ([name, target], None) => (Some(*name), target.parse().map_err(Failure::usage)?),
            ([], None) => {
                return Err(Failure::usage("name the pods: a TARGET such as deploy/web, or -l SELECTOR, or --all"));
            }
            _ => return Err(Failure::usage("with -l or --all, the only argument is the NAME of the tap")),
        };
        if let Some(name) = name.filter(|name| name.contains('/')) {
            return Err(Failure::usage(format!(
                "{name:?} is not a name for a tap: it comes first, and the target after it"
            )));
        }
        Ok((name.map(str::to_owned), target))
    }

    fn spec(&self, selection: Selection, mirror: MirrorSpec) -> PodTapSpec {
        let targets = self.pods.targets(selection);
        PodTapSpec { targets, mirror }
    }

    /// What the user should confirm.
    fn consequences(&self, cluster: &Cluster, tap: &PodTap) -> Vec<String> {
        let mut all = self.pods.consequences(cluster);
        for external in tap.spec.mirror.destinations.iter().filter_map(|destination| destination.external.as_ref()) {
            all.push(format!("this sends the pods' traffic out of the cluster, to {}", external.address));
        }
        all
    }
}

/// Creates a tap.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let (given, target) = arguments.target()?;
    let name = given.clone().unwrap_or_else(|| target.tap_name());
    // Before anything is asked of the cluster.
    let mirror = arguments.mirror.clone().spec()?;
    let mut cluster = None;
    let selection = match target {
        Target::Selected(selection) => selection,
        Target::Of(workload, name) => workload.selection(&name, cluster.insert(connection.open().await?)).await?,
    };
    let spec = arguments.spec(selection, mirror);
    // Without a cluster, unless the target is in it.
    if arguments.dry_run == DryRun::Client {
        return print(&tap_of(&name, connection.namespace.as_deref(), spec), arguments.output, " created (dry run)");
    }
    let cluster = match cluster {
        Some(cluster) => cluster,
        None => connection.open().await?,
    };
    let mut tap = tap_of(&name, Some(&cluster.namespace), spec);
    let api: Api<PodTap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let before = api.get_opt(&name).await?;
    if given.is_none() && before.as_ref().is_some_and(|before| before.spec.targets != tap.spec.targets) {
        return Err(Failure::new(
            Exit::Refused,
            format!("PodTap {}/{name} exists, and has other targets: give the new tap a NAME", cluster.namespace),
        ));
    }
    // Not another one that was created meanwhile.
    tap.metadata.uid = before.as_ref().and_then(|before| before.metadata.uid.clone());
    let author = before.as_ref().and_then(|before| before.annotations().get(REQUESTED_BY).cloned());
    let is_changed = before.as_ref().is_none_or(|before| before.spec != tap.spec);
    let user = if is_changed { own_name(&cluster).await.or(author) } else { author };
    tap.metadata.annotations = user.map(|user| [(REQUESTED_BY.to_owned(), user)].into());
    if arguments.dry_run == DryRun::Server {
        let stored = apply(&api, &tap, true).await?;
        return print(
            &stored,
            arguments.output,
            if before.is_some() { " changed (server dry run)" } else { " created (server dry run)" },
        );
    }
    let mut consequences = arguments.consequences(&cluster, &tap);
    if before.as_ref().is_some_and(|before| before.spec != tap.spec) {
        consequences.push(format!("PodTap {}/{name} exists and would be changed", cluster.namespace));
    }
    for consequence in consequences {
        ask(&consequence, arguments.yes).await?;
    }
    let stored = apply(&api, &tap, false).await?;
    let done = match before {
        None => " created",
        Some(before) if before.metadata.generation == stored.metadata.generation => " unchanged",
        Some(_) => " changed",
    };
    print(&stored, arguments.output, done)?;
    let others = of_others(&tap, &stored);
    if !others.is_empty() {
        return Err(Failure::new(
            Exit::Partly,
            format!(
                "PodTap {}/{name} keeps values of another field manager in {}: kubectl get podtap {name} -n {0} -o yaml \
                 --show-managed-fields",
                cluster.namespace,
                others.join(", ")
            ),
        ));
    }
    let is_suspended = stored.spec.mirror.suspend;
    // Another field manager has set it.
    if is_suspended && !arguments.mirror.suspend {
        warn(&format!("it is suspended: kubectl podtap resume -n {} {name}", cluster.namespace));
    }
    if arguments.wait.is_zero() || is_suspended {
        return Ok(Exit::Done);
    }
    let report = |text: &str| {
        if arguments.output.is_none() { line(text) } else { console.progress(text) }
    };
    wait_until_ready(&cluster, Tap::Namespaced(Box::new(stored)), arguments.wait, console, report).await
}

fn tap_of(name: &str, namespace: Option<&str>, spec: PodTapSpec) -> PodTap {
    let mut tap = PodTap::new(name, spec);
    tap.metadata.namespace = namespace.map(str::to_owned);
    tap
}

fn print(tap: &PodTap, output: Option<Format>, done: &str) -> Outcome {
    match output {
        Some(Format::Yaml) => data(&manifest::yaml(&manifest::document(tap))?),
        Some(Format::Json) => data(&manifest::json(&manifest::document(tap))),
        Some(Format::Name) => line(&Kind::PodTap.object(&tap.name_any())),
        None => line(&format!("{}{done}", Kind::PodTap.object(&tap.name_any()))),
    }
    Ok(Exit::Done)
}

async fn apply(api: &Api<PodTap>, tap: &PodTap, dry_run: bool) -> Outcome<PodTap> {
    let parameters = PatchParams { dry_run, ..PatchParams::apply(MANAGER).validation_strict() };
    let mut document = manifest::whole(tap);
    // Otherwise, `suspend` would conflict with the next `create`.
    if let Some(spec) = document["spec"].as_object_mut().filter(|_| !tap.spec.mirror.suspend) {
        spec.remove("suspend");
    }
    Ok(api.patch(&tap.name_any(), &parameters, &Patch::Apply(document)).await?)
}

/// The fields of the spec that another field manager has added to: items of lists do not conflict.
fn of_others(tap: &PodTap, stored: &PodTap) -> Vec<String> {
    let [mut sent, mut stored] = [tap, stored].map(|tap| manifest::whole(tap)["spec"].take());
    [&mut sent, &mut stored].into_iter().filter_map(Value::as_object_mut).for_each(|spec| drop(spec.remove("suspend")));
    let fields = stored.as_object().into_iter().flatten();
    fields.filter(|(name, value)| sent.get(*name) != Some(*value)).map(|(name, _)| name.clone()).collect()
}

/// The user's name, as the API server knows it.
pub async fn own_name(cluster: &Cluster) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(cluster.client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok()?;
    review.status?.user_info?.username
}

#[cfg(test)]
mod tests;
