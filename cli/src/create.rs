//! `create`: a tap from flags, and its way to Ready.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use k8s_openapi::{api::authentication::v1::SelfSubjectReview, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use podtap_api::{ObjectSelector, PodTap, PodTapSpec, PodTapStatus, Targets};
use podtap_model::{InterfaceName, Reason};

use crate::{
    complete,
    connection::{Cluster, Connection, duration},
    console::Console,
    exit::{Exit, Failure, Outcome, page_of},
    manifest,
    mirror::MirrorFlags,
    pods::{Surroundings, Verdict, matching, verdict},
    selector,
    tap::{Kind, MANAGER, REQUESTED_BY, Tap},
    target::{Selection, Target},
    wait::{Progress, Waiting, Why, progress, until},
};

/// More pods than this are tapped only if the user confirms it: the default of `maxPods`.
const MANY_PODS: u32 = 32;

/// Arguments of `create`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// NAME of the tap, which is made from the target if it is left out, and TARGET: pod/NAME, deploy/NAME, sts/NAME, ds/NAME, rs/NAME,
    /// job/NAME or svc/NAME. A name alone is that of a pod
    #[arg(value_names = ["NAME", "TARGET"], num_args = 0..=2, add = ArgValueCompleter::new(complete::targets))]
    words: Vec<String>,
    /// The pods with these labels, instead of TARGET
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector::parse, conflicts_with = "all")]
    selector: Option<LabelSelector>,
    /// All pods of the namespace, instead of TARGET. Asks
    #[arg(long)]
    all: bool,
    /// Interface inside the pods. Default: the one with the pod's primary address
    #[arg(long, value_name = "NAME")]
    interface: Option<InterfaceName>,
    /// Most pods to tap; asks if there may be more than 32
    #[arg(long, value_name = "N", default_value_t = MANY_PODS)]
    max_pods: u32,
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
        let without_target = match (&self.selector, self.all) {
            (Some(selector), _) => Some(Target::Labels(selector.clone())),
            (None, true) => Some(Target::All),
            (None, false) => None,
        };
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

    fn spec(&self, selection: Selection) -> Outcome<PodTapSpec> {
        let (pod_names, pod_selector) = match selection {
            Selection::Names(names) => (Some(names), None),
            Selection::Labels(selector) => (None, Some(ObjectSelector::from(selector))),
        };
        let targets = Targets { pod_names, pod_selector, interface: self.interface.clone(), max_pods: self.max_pods };
        Ok(PodTapSpec { targets, mirror: self.mirror.clone().spec()? })
    }

    /// What the user should confirm.
    fn consequences(&self, cluster: &Cluster, tap: &PodTap) -> Vec<String> {
        let mut all = Vec::new();
        if self.all {
            all.push(format!("this mirrors every pod of the namespace {}", cluster.namespace));
        }
        if self.max_pods > MANY_PODS {
            all.push(format!("this may mirror up to {} pods", self.max_pods));
        }
        if cluster.is_another_namespace {
            all.push(format!("this mirrors pods of {}, which is not the namespace of the context", cluster.namespace));
        }
        for external in tap.spec.mirror.destinations.iter().filter_map(|destination| destination.external.as_ref()) {
            all.push(format!("this sends the pods' traffic out of the cluster, to {}", external.address));
        }
        all
    }
}

/// Creates a tap.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let (name, target) = arguments.target()?;
    let name = name.unwrap_or_else(|| target.tap_name());
    if arguments.dry_run == DryRun::Client && !matches!(target, Target::Workload(..)) {
        // Without a cluster.
        let selection = match target {
            Target::Pods(names) => Selection::Names(names),
            Target::Labels(selector) => Selection::Labels(selector),
            Target::All | Target::Workload(..) => Selection::Labels(LabelSelector::default()),
        };
        let tap = tap_of(&name, connection.namespace.as_deref(), arguments.spec(selection)?);
        return print(&tap, arguments.output, " created (dry run)");
    }
    // Before anything is asked of the cluster.
    arguments.mirror.clone().spec()?;
    let cluster = connection.open().await?;
    let selection = target.resolve(&cluster).await?;
    let spec = arguments.spec(selection)?;
    if arguments.dry_run == DryRun::Client {
        return print(&tap_of(&name, connection.namespace.as_deref(), spec), arguments.output, " created (dry run)");
    }
    let mut tap = tap_of(&name, Some(&cluster.namespace), spec);
    let api: Api<PodTap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let before = api.get_opt(&name).await?;
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
        console.ask(&consequence, arguments.yes)?;
    }
    if let Some(user) = own_name(&cluster).await {
        tap.annotations_mut().insert(REQUESTED_BY.to_owned(), user);
    }
    let stored = apply(&api, &tap, false).await?;
    let done = match before {
        None => " created",
        Some(before) if before.metadata.generation == stored.metadata.generation => " unchanged",
        Some(_) => " changed",
    };
    print(&stored, arguments.output, done)?;
    if arguments.wait.is_zero() || stored.spec.mirror.suspend {
        return Ok(Exit::Done);
    }
    let report = |line: &str| {
        if arguments.output.is_none() { anstream::println!("{line}") } else { console.progress(line) }
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
        Some(Format::Yaml) => anstream::print!("{}", manifest::yaml(&manifest::document(tap))?),
        Some(Format::Json) => anstream::print!("{}", manifest::json(&manifest::document(tap))),
        Some(Format::Name) => anstream::println!("{}", Kind::PodTap.object(&tap.name_any())),
        None => anstream::println!("{}{done}", Kind::PodTap.object(&tap.name_any())),
    }
    Ok(Exit::Done)
}

async fn apply(api: &Api<PodTap>, tap: &PodTap, dry_run: bool) -> Outcome<PodTap> {
    let parameters = PatchParams { dry_run, ..PatchParams::apply(MANAGER).validation_strict() };
    Ok(api.patch(&tap.name_any(), &parameters, &Patch::Apply(manifest::document(tap))).await?)
}

/// The user's name, as the API server knows it.
async fn own_name(cluster: &Cluster) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(cluster.client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok()?;
    review.status?.user_info?.username
}

/// Waits until a tap is Ready, and reports a line per node.
pub async fn wait_until_ready(
    cluster: &Cluster,
    tap: Tap,
    limit: Duration,
    console: Console,
    report: impl Fn(&str),
) -> Outcome {
    let mut waiting = Waiting::new(console);
    let mut last = None;
    let end = until(cluster, &tap, limit, |current| {
        let Some(current) = current else { return ControlFlow::Break(Err("the tap was deleted".to_owned())) };
        match progress(current) {
            Progress::Ready => return ControlFlow::Break(Ok(current.clone())),
            Progress::Suspended => return ControlFlow::Break(Err(format!("{current} is suspended"))),
            Progress::Refused(why) => {
                return ControlFlow::Break(Err(format!("{current} stays, and mirrors nothing: {}", why.with_page())));
            }
            Progress::Waiting(why) => {
                waiting.reports(why.to_string());
                last = Some(why);
            }
        }
        ControlFlow::Continue(())
    })
    .await?;
    match end {
        Some(Ok(tap)) => ready(cluster, &tap, report).await,
        Some(Err(message)) => Err(Failure::new(Exit::Refused, message)),
        None => Err(late(&tap, limit, last)),
    }
}

fn late(tap: &Tap, limit: Duration, last: Option<Why>) -> Failure {
    let is_empty = [Reason::NoPodsMatch, Reason::PodNotFound, Reason::AllPodsSkipped];
    match last {
        Some(why) if is_empty.iter().any(|reason| reason.as_str() == why.reason) => {
            Failure::new(Exit::Refused, format!("{tap} stays, and taps pods as they are created: {}", why.with_page()))
        }
        Some(why) => {
            let seconds = limit.as_secs();
            Failure::new(
                Exit::TimedOut,
                format!("{tap} is not Ready after {seconds} s, and stays: {}", why.with_page()),
            )
        }
        None => Failure::new(Exit::TimedOut, format!("{tap}: the API server has not answered in time")),
    }
}

/// Reports what is mirrored.
async fn ready(cluster: &Cluster, tap: &Tap, report: impl Fn(&str)) -> Outcome {
    let status = tap.status().cloned().unwrap_or_default();
    let around = Surroundings::read(cluster).await?;
    match matching(cluster, tap).await? {
        Some(pods) => {
            let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for pod in pods.iter().filter(|pod| verdict(tap, pod, &around) == Verdict::Tapped) {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                nodes.entry(node).or_default().push(pod.name_any());
            }
            for (node, pods) in nodes {
                report(&format!("{node}: {} -> {}", pods.join(", "), status.destination));
            }
        }
        None => report(&format!("{} pods -> {} (you may not list pods)", status.tapped_pods, status.destination)),
    }
    let refused = refused(&status);
    refused.iter().for_each(|line| report(line));
    Ok(if refused.is_empty() { Exit::Done } else { Exit::Partly })
}

/// The pods of a tap that is Ready that are not tapped, except those that have ended or are its destinations.
fn refused(status: &PodTapStatus) -> Vec<String> {
    let is_meant = |reason: Reason| matches!(reason, Reason::PodFinished | Reason::DestinationIsTarget);
    let skipped = status.skipped.iter().filter(|skipped| !is_meant(skipped.reason)).map(|skipped| {
        let (names, reason) = (skipped.pods.join(", "), skipped.reason);
        format!("not tapped: {} pods ({names}), {reason}. See {}", skipped.count, page_of(reason.as_str()))
    });
    let failures = status.failures.iter().map(|failure| {
        format!(
            "not tapped: {} ({}): {}. See {}",
            failure.pod,
            failure.reason,
            failure.message,
            page_of(failure.reason.as_str())
        )
    });
    skipped.chain(failures).collect()
}

#[cfg(test)]
mod tests;
