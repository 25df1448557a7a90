//! `suspend` and `resume`.

use std::{ops::ControlFlow, time::Duration};

use clap::Args;
use clap_complete::ArgValueCandidates;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{
    complete,
    connection::{Cluster, Connection, duration},
    console::{Console, after, ask, counted, line},
    exit::{Exit, Failure, Outcome},
    ready::wait_until_ready,
    tap::{MANAGER, Tap, TapName, all, named},
    wait::{Progress, Waiting, progress, until},
};

/// Arguments of the verbs that change taps.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Taps: NAME, or cptap/NAME for a ClusterPodTap
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all", add = ArgValueCandidates::new(complete::taps))]
    pub names: Vec<TapName>,
    /// Every PodTap of the namespace. Asks
    #[arg(long)]
    pub all: bool,
    /// With --all: of all namespaces, and every ClusterPodTap
    #[arg(short = 'A', long, requires = "all")]
    pub all_namespaces: bool,
    /// How long to wait for each tap. 0: do not wait
    // Longer than a node that does not answer delays a deletion.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub wait: Duration,
    /// Ask nothing
    #[arg(short, long)]
    pub yes: bool,
}

impl Arguments {
    /// The taps, which the user has confirmed if they are all, and the exit code so far.
    pub async fn taps(&self, cluster: &Cluster, verb: &str) -> Outcome<(Vec<Tap>, Exit)> {
        if !self.all {
            return Ok(named(cluster, &self.names).await);
        }
        let (taps, exit) = all(cluster, self.all_namespaces).await?;
        let names: Vec<_> = taps.iter().map(Tap::to_string).collect();
        ask(&format!("this {verb} {}: {}", counted(taps.len(), "tap"), names.join(", ")), self.yes).await?;
        Ok((taps, exit))
    }
}

/// Suspends or resumes taps.
pub async fn run(arguments: Arguments, suspend: bool, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    let (taps, mut exit) = arguments.taps(&cluster, if suspend { "suspends" } else { "resumes" }).await?;
    let mut changed = Vec::new();
    // All of them at first: none keeps the others waiting.
    for tap in taps {
        match patch(&cluster, &tap, suspend).await {
            Ok(tap) => changed.push(tap),
            Err(failure) => exit = after(exit, Err(failure)),
        }
    }
    for tap in changed {
        exit = after(exit, finish(&cluster, tap, suspend, arguments.wait, console).await);
    }
    Ok(exit)
}

async fn patch(cluster: &Cluster, tap: &Tap, suspend: bool) -> Outcome<Tap> {
    // With the UID, the API server does not change another one of the same name.
    let patch = Patch::Merge(json!({"metadata": {"uid": tap.uid()}, "spec": {"suspend": suspend}}));
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let object = tap.api(cluster).patch(tap.name(), &parameters, &patch).await?;
    Tap::of(tap.kind(), object)
}

/// Waits for what the change is about, and reports it.
async fn finish(cluster: &Cluster, tap: Tap, suspend: bool, limit: Duration, console: Console) -> Outcome {
    let object = tap.kind().object(tap.name());
    if suspend {
        if !limit.is_zero() {
            until_suspended(cluster, &tap, limit, console).await?;
        }
        line(&format!("{object} suspended"));
        return Ok(Exit::Done);
    }
    line(&format!("{object} resumed"));
    if limit.is_zero() { Ok(Exit::Done) } else { wait_until_ready(cluster, tap, limit, console, line).await }
}

async fn until_suspended(cluster: &Cluster, tap: &Tap, limit: Duration, console: Console) -> Outcome<()> {
    let mut waiting = Waiting::new(console);
    let end = until(cluster, tap, limit, |current| match current {
        None => ControlFlow::Break(Err(Failure::new(Exit::Refused, format!("{tap} was deleted meanwhile")))),
        // One that has expired, or is not valid, is not called suspended.
        Some(current)
            if matches!(progress(current), Progress::Suspended(_) | Progress::Refused(_)) && is_quiet(current) =>
        {
            ControlFlow::Break(Ok(()))
        }
        Some(_) => {
            waiting.reports(format!("{tap} to stop mirroring"));
            ControlFlow::Continue(())
        }
    });
    end.await?.unwrap_or_else(|| {
        Err(Failure::new(
            Exit::TimedOut,
            format!("{tap} still mirrors after {} s: kubectl podtap explain {}", limit.as_secs(), tap.arguments()),
        ))
    })
}

/// Whether no pod is tapped.
fn is_quiet(tap: &Tap) -> bool {
    tap.status().is_none_or(|status| status.tapped_pods == 0)
}
