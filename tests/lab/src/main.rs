//! `lab`: a real Kubernetes on one machine.
//!
//! Nodes are sets of namespaces, each with its own kubelet, containerd, kube-proxy and pods; the control plane is another one. Only Go
//! modules and Debian packages are downloaded. See `tests/lab/README.md`.

mod addresses;
mod binaries;
mod cgroup;
mod cluster;
mod command;
mod control_plane;
mod digest;
mod dns;
mod down;
mod fabric;
mod go;
mod image;
mod load;
mod machine;
mod member;
mod mounts;
mod namespaces;
mod node;
mod node_config;
mod pki;
mod prerequisites;
mod process;
mod progress;
mod relay;
mod signals;
mod state;
mod status;
mod supervisor;
mod test_images;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

use addresses::CONTROL_PLANE;
use state::Lab;

/// A real Kubernetes on one machine: nodes are namespaces, the state is in target/lab of the checkout.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring the lab up, or complete one that is partly up.
    Up {
        /// The least number of nodes.
        #[arg(long, env = "NODES", default_value_t = 2)]
        nodes: u8,
        /// Leave Helm out, which takes a minute to build the first time.
        #[arg(long)]
        no_helm: bool,
    },
    /// Take the lab down and restore the machine.
    Down,
    /// Show what is up.
    Status,
    /// Print the path of the kubeconfig.
    Kubeconfig,
    /// Run a command in all namespaces of a node, or of `cp`, the control plane.
    Exec {
        /// n1, n2, ... or cp.
        member: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Load an image into all nodes, also those that are started later.
    Load {
        /// A tar archive: an OCI layout, or from `docker save`.
        archive: PathBuf,
    },
    /// Deploy CoreDNS, which takes a minute to build the first time.
    Dns,
    /// Cut a node's power.
    NodeKill {
        /// n1, n2, ...
        node: String,
    },
    /// Start a node again, or one more, and wait until it is ready.
    NodeStart {
        /// n1, n2, ...
        node: String,
    },
    /// Cut a node's link to all others and to the API server.
    Partition {
        /// n1, n2, ...
        node: String,
    },
    /// Restore a node's link.
    Heal {
        /// n1, n2, ...
        node: String,
    },
    /// Build the programs of Kubernetes, etcd and Helm, and the lab's own images, and nothing more.
    Binaries {
        /// Leave Helm out.
        #[arg(long)]
        no_helm: bool,
    },
    /// Build validate-krew-manifest, and nothing more.
    Krew,
    /// Make a container image from files.
    Image(ImageArguments),
    #[command(hide = true)]
    Begin { member: String },
    #[command(hide = true)]
    Init { member: String },
    #[command(hide = true)]
    Import { node: String, archive: PathBuf },
    #[command(hide = true)]
    Relay,
}

#[derive(Debug, Args)]
struct ImageArguments {
    /// Full name with registry and tag.
    name: String,
    /// Where the archive is written.
    archive: PathBuf,
    /// The program and its arguments as a JSON list.
    #[arg(long)]
    entrypoint: String,
    /// UID, or UID:GID, to run as.
    #[arg(long)]
    user: Option<String>,
    /// NAME=value, as often as needed.
    #[arg(long = "env")]
    environment: Vec<String>,
    /// DEST=SRC for a file, DEST=->TARGET for a symbolic link.
    #[arg(required = true)]
    files: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run(arguments.command).unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(action: Action) -> Result<ExitCode> {
    if let Action::Image(arguments) = action {
        return make_image(arguments).map(|()| ExitCode::SUCCESS);
    }
    let lab = &Lab::find()?;
    if !matches!(action, Action::Kubeconfig | Action::Krew) {
        ensure!(nix::unistd::geteuid().is_root(), "the lab creates namespaces, cgroups and mounts: run this as root");
    }
    match action {
        Action::Up { nodes, no_helm } => up::up(lab, nodes, !no_helm)?,
        Action::Down => down::down(lab)?,
        Action::Status => status::print(lab)?,
        Action::Kubeconfig => println!("{}", lab.path("kubeconfig").display()),
        Action::Exec { member, command } => {
            return namespaces::enter(&member::expect(lab, &member)?, &command).map(ExitCode::from);
        }
        Action::Load { archive } => load::load(lab, &archive)?,
        Action::Dns => dns::deploy(lab)?,
        Action::NodeKill { node } => kill_node(lab, &node)?,
        Action::NodeStart { node } => up::start_node(lab, &node)?,
        Action::Partition { node } => set_cable(lab, &node, false)?,
        Action::Heal { node } => set_cable(lab, &node, true)?,
        Action::Binaries { no_helm } => {
            let _lock = lab.lock()?;
            up::prepare(lab)?;
            if !no_helm {
                binaries::ensure_helm(lab)?;
            }
        }
        Action::Krew => binaries::ensure_krew(lab)?,
        Action::Begin { member } => namespaces::begin(lab, &member)?,
        Action::Init { member } => init(lab, &member)?,
        Action::Import { node, archive } => node::import(lab, &node, &archive)?,
        Action::Relay => relay::run(lab)?,
        Action::Image(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The first process of a member. It records itself before anything else, so that it is known even after a crash.
fn init(lab: &Lab, member: &str) -> Result<()> {
    process::Process::record_own(&member::record(lab, member))?;
    nix::unistd::setsid()?;
    if member == CONTROL_PLANE { control_plane::init(lab) } else { node::init(lab, member) }
}

fn kill_node(lab: &Lab, node: &str) -> Result<()> {
    let _lock = lab.lock()?;
    let was_up = node::kill(lab, node)?;
    progress::say(&format!("{node} {}", if was_up { "is without power" } else { "was down already" }));
    Ok(())
}

fn set_cable(lab: &Lab, node: &str, connected: bool) -> Result<()> {
    member::expect(lab, node)?;
    fabric::set_cable(&member::expect(lab, CONTROL_PLANE)?, addresses::number(node)?, connected)?;
    progress::say(&format!("{node} is {}", if connected { "connected" } else { "cut off from all others" }));
    Ok(())
}

fn make_image(arguments: ImageArguments) -> Result<()> {
    let entrypoint =
        serde_json::from_str(&arguments.entrypoint).context("the entrypoint is not a JSON list of strings")?;
    let files = arguments.files.iter().map(|file| image::parse_file(file)).collect::<Result<_>>()?;
    let ImageArguments { name, archive, user, environment, .. } = arguments;
    image::write(&image::Image { name, entrypoint, user, environment, files }, &archive)
}
