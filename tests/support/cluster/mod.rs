//! The lab, for tests: a client of its API server, and commands on its nodes.

mod node;
mod sandbox;

pub use node::{in_network, namespace_of_node, namespace_of_pod, traces, udp_socket};
pub use sandbox::Sandbox;

use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

/// The namespace that PodTap is installed in.
pub const PODTAP_NAMESPACE: &str = "podtap-system";

/// The top of the checkout.
///
/// # Panics
/// Never: tests/ has a parent.
#[must_use]
pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}

/// The running lab.
pub struct Cluster {
    runtime: Runtime,
    client: Client,
    top: PathBuf,
}

/// Held exclusively by tests that change what all taps share: the policy, the controller, a node's power.
static ALONE: RwLock<()> = RwLock::new(());

impl Cluster {
    /// The lab of this checkout.
    ///
    /// # Panics
    /// If it is not up: end-to-end tests that did not run have not passed.
    #[must_use]
    pub fn lab() -> &'static Self {
        static LAB: OnceLock<Cluster> = OnceLock::new();
        LAB.get_or_init(|| {
            let top = top();
            let kubeconfig = top.join("target/lab/kubeconfig");
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime can be made");
            let client = runtime.block_on(async {
                let file = Kubeconfig::read_from(&kubeconfig)
                    .unwrap_or_else(|e| panic!("no lab: {e}; `make install` boots one"));
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                Client::try_from(config.expect("the lab's kubeconfig is complete")).expect("a client can be made")
            });
            Self { runtime, client, top }
        })
    }

    /// Waits until no test is [`alone`](Self::alone); none can be until the guard is dropped.
    pub fn beside_others() -> RwLockReadGuard<'static, ()> {
        ALONE.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits until no other test runs; none can until the guard is dropped.
    pub fn alone() -> RwLockWriteGuard<'static, ()> {
        ALONE.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A client of the API server, as an administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The top of the checkout.
    #[must_use]
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// Blocks until a future of the client is ready.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The object, or none if it does not exist.
    ///
    /// # Panics
    /// If the request fails.
    #[must_use]
    pub fn get<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client(), namespace);
        self.wait(api.get_opt(name)).expect("the API server answers")
    }

    /// All objects of a namespace.
    ///
    /// # Panics
    /// If the request fails.
    #[must_use]
    pub fn list<K>(&self, namespace: &str) -> Vec<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client(), namespace);
        self.wait(api.list(&ListParams::default())).expect("the API server answers").items
    }

    /// All objects of a kind, of all namespaces if it has any.
    ///
    /// # Panics
    /// If the request fails.
    #[must_use]
    pub fn list_all<K>(&self) -> Vec<K>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client());
        self.wait(api.list(&ListParams::default())).expect("the API server answers").items
    }

    /// Runs `kubectl` as a user would, with `input` on its standard input.
    ///
    /// # Errors
    /// If it fails, with its standard error.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(self.top.join("target/lab/bin/kubectl"));
        command.arg("--kubeconfig").arg(self.top.join("target/lab/kubeconfig")).args(arguments);
        text_of(&run(command, input))
    }

    /// Runs a program from `target/lab/bin` (`lab`, `helm`).
    ///
    /// # Errors
    /// If it fails, with its standard error.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.top.join("target/lab/bin").join(name));
        command.current_dir(&self.top).args(arguments);
        text_of(&run(command, ""))
    }

    /// Runs `helm` for PodTap's namespace.
    ///
    /// # Errors
    /// If it fails, with its standard error.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn helm(&self, arguments: &[&str]) -> Result<String, String> {
        let kubeconfig = self.top.join("target/lab/kubeconfig").display().to_string();
        let connection = ["--namespace", PODTAP_NAMESPACE, "--kubeconfig", &kubeconfig];
        self.tool("helm", &[arguments, &connection].concat())
    }

    /// The tag of the image that `make install` of a checkout has built for the lab.
    ///
    /// # Panics
    /// If it was not built.
    #[must_use]
    pub fn image_tag(checkout: &Path) -> String {
        let tag = fs::read_to_string(checkout.join("target/lab/podtap-image.tag")).expect("make install ran");
        tag.trim().to_owned()
    }

    /// Runs a shell script in all namespaces of a node.
    ///
    /// # Errors
    /// If it fails, with its standard error.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn on_node(&self, node: &str, script: &str) -> Result<String, String> {
        self.tool("lab", &["exec", node, "--", "sh", "-c", script])
    }
}

fn run(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut pipe = child.stdin.take().expect("standard input is a pipe");
    // A program that has failed already has closed the pipe; its own message is the better one.
    let _ = pipe.write_all(input.as_bytes());
    drop(pipe);
    child.wait_with_output().expect("a child can be waited for")
}

fn text_of(output: &Output) -> Result<String, String> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
