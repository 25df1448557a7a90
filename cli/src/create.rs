//! `create`: a tap from flags, and its way to Ready.

use std::time::Duration;

use clap::{Args, ValueEnum};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Api, ResourceExt as _, api::PostParams};
use podtap_api::PodTap;
use serde_json::Value;

use crate::{
    connection::{Cluster, Connection, duration},
    console::{Console, ask, data, line, warn},
    exit::{Exit, Failure, Outcome},
    manifest,
    ready::wait_until_ready,
    tap::{Kind, REQUESTED_BY, Tap},
    tap_flags::{TapFlags, apply, is_of_the_same_targets, tap_of},
    target::Target,
};

/// Arguments of `create`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    tap: TapFlags,
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
    /// What the user should confirm.
    fn consequences(&self, cluster: &Cluster, tap: &PodTap) -> Vec<String> {
        let mut all = self.tap.pods.consequences(cluster);
        for external in tap.spec.mirror.destinations.iter().filter_map(|destination| destination.external.as_ref()) {
            all.push(format!("this sends the pods' traffic out of the cluster, to {}", external.address));
        }
        all
    }
}

/// Creates a tap.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let (given, target) = arguments.tap.target()?;
    let name = given.clone().unwrap_or_else(|| target.tap_name());
    // Before anything is asked of the cluster.
    let mirror = arguments.tap.mirror.clone().spec()?;
    let mut cluster = None;
    let selection = match target {
        Target::Selected(selection) => selection,
        Target::Of(workload, name) => workload.selection(&name, cluster.insert(connection.open().await?)).await?,
    };
    let spec = arguments.tap.spec(selection, mirror);
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
    if given.is_none() {
        is_of_the_same_targets(&tap, before.as_ref())?;
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
    if is_suspended && !arguments.tap.mirror.suspend {
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

fn print(tap: &PodTap, output: Option<Format>, done: &str) -> Outcome {
    match output {
        Some(Format::Yaml) => data(&manifest::yaml(&manifest::document(tap))?),
        Some(Format::Json) => data(&manifest::json(&manifest::document(tap))),
        Some(Format::Name) => line(&Kind::PodTap.object(&tap.name_any())),
        None => line(&format!("{}{done}", Kind::PodTap.object(&tap.name_any()))),
    }
    Ok(Exit::Done)
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
