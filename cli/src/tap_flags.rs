//! Flags for a tap: those from which `create` makes one, and `plan` tells what it would do.

use clap::Args;
use clap_complete::ArgValueCompleter;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use podtap_api::{MirrorSpec, PodTap, PodTapSpec};

use crate::{
    complete,
    exit::{Exit, Failure, Outcome},
    manifest,
    mirror::MirrorFlags,
    tap::MANAGER,
    target::{NO_TARGET, PodFlags, Selection, Target},
};

/// Which pods, and what is mirrored of them.
#[derive(Args, Clone, Debug)]
pub struct TapFlags {
    /// NAME of the tap, which is made from the target if it is left out, and TARGET: pod/NAME, deploy/NAME, sts/NAME, ds/NAME, rs/NAME,
    /// job/NAME or svc/NAME. A name alone is that of a pod
    #[arg(value_names = ["NAME", "TARGET"], num_args = 0..=2, add = ArgValueCompleter::new(complete::targets))]
    pub words: Vec<String>,
    #[command(flatten)]
    pub pods: PodFlags,
    #[command(flatten)]
    pub mirror: MirrorFlags,
}

impl TapFlags {
    /// The name, if there is one, and the target.
    pub fn target(&self) -> Outcome<(Option<String>, Target)> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let without_target = self.pods.selection().map(Target::Selected);
        let (name, target) = match (words.as_slice(), without_target) {
            ([], Some(target)) => (None, target),
            ([name], Some(target)) => (Some(*name), target),
            ([target], None) => (None, target.parse().map_err(Failure::usage)?),
            ([name, target], None) => (Some(*name), target.parse().map_err(Failure::usage)?),
            ([], None) => {
                return Err(Failure::usage(NO_TARGET));
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

    /// The spec of a tap of these pods.
    pub fn spec(&self, selection: Selection, mirror: MirrorSpec) -> PodTapSpec {
        let targets = self.pods.targets(selection);
        PodTapSpec { targets, mirror }
    }
}

/// A tap with this spec.
pub fn tap_of(name: &str, namespace: Option<&str>, spec: PodTapSpec) -> PodTap {
    let mut tap = PodTap::new(name, spec);
    tap.metadata.namespace = namespace.map(str::to_owned);
    tap
}

/// Refuses to change the targets of a tap that has by chance the name that was made from a target.
pub fn is_of_the_same_targets(tap: &PodTap, before: Option<&PodTap>) -> Outcome<()> {
    if before.is_none_or(|before| before.spec.targets == tap.spec.targets) {
        return Ok(());
    }
    let (namespace, name) = (tap.namespace().unwrap_or_default(), tap.name_any());
    let message = format!("PodTap {namespace}/{name} exists, and has other targets: give the new tap a NAME");
    Err(Failure::new(Exit::Refused, message))
}

/// Applies a tap, or has the API server say what it would store.
pub async fn apply(api: &Api<PodTap>, tap: &PodTap, dry_run: bool) -> Outcome<PodTap> {
    let parameters = PatchParams { dry_run, ..PatchParams::apply(MANAGER).validation_strict() };
    let mut document = manifest::whole(tap);
    // Otherwise, `suspend` would conflict with the next `create`.
    if let Some(spec) = document["spec"].as_object_mut().filter(|_| !tap.spec.mirror.suspend) {
        spec.remove("suspend");
    }
    Ok(api.patch(&tap.name_any(), &parameters, &Patch::Apply(document)).await?)
}
