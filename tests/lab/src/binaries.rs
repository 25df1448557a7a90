//! The programs of Kubernetes, etcd, Helm and CoreDNS, built from their Go modules.
//!
//! They are cached outside of the checkout under a name derived from what they are built from, so that a fresh clone on the same
//! machine finds them.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{command, digest, go, progress, state::Lab, state::write_whole};

/// Programs built from one `go.mod`. Helm, krew and CoreDNS have their own: they need other versions of the same libraries.
struct Module {
    name: &'static str,
    directory: &'static str,
    packages: &'static [(&'static str, &'static str)],
    /// The source file of a program that is not from elsewhere.
    own: Option<&'static str>,
}

const KUBERNETES: Module = Module {
    name: "Kubernetes and etcd",
    directory: "tests/lab",
    packages: &[
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ("etcd", "go.etcd.io/etcd/server/v3"),
    ],
    own: None,
};

const HELM: Module =
    Module { name: "Helm", directory: "tests/lab/helm", packages: &[("helm", "helm.sh/helm/v3/cmd/helm")], own: None };

const KREW: Module = Module {
    name: "the validator of krew",
    directory: "tests/lab/krew",
    packages: &[("validate-krew-manifest", "sigs.k8s.io/krew/cmd/validate-krew-manifest")],
    own: None,
};

const COREDNS: Module = Module {
    name: "CoreDNS",
    directory: "tests/lab/dns",
    packages: &[("coredns", "podtap.dev/tests/lab/dns")],
    own: Some("main.go"),
};

/// Programs for people: a wrapper points them at the lab, unless `KUBECONFIG` points elsewhere.
const CLIENTS: [&str; 2] = ["kubectl", "helm"];

/// For the compiler: no debugging information, which the linker would drop anyway, and no inlining. Both together save a third of the
/// build time; the programs are fast enough without.
const COMPILER_FLAGS: &str = "all=-dwarf=false -l";

/// Builds the programs that a cluster consists of, unless they are in the cache, and links them into `target/lab/bin`.
pub fn ensure_kubernetes(lab: &Lab) -> Result<()> {
    ensure_linked(lab, &KUBERNETES)?;
    install_self(lab)
}

/// Likewise Helm, which no cluster needs.
pub fn ensure_helm(lab: &Lab) -> Result<()> {
    ensure_linked(lab, &HELM)
}

/// Likewise the program that validates manifests of kubectl's plugins.
pub fn ensure_krew(lab: &Lab) -> Result<()> {
    ensure_linked(lab, &KREW)
}

/// Likewise CoreDNS, which runs in pods.
pub fn ensure_coredns(lab: &Lab) -> Result<()> {
    ensure_linked(lab, &COREDNS)
}

fn ensure_linked(lab: &Lab, module: &Module) -> Result<()> {
    fs::create_dir_all(lab.path("bin"))?;
    let built = ensure_module(lab, module, &go::find()?)?;
    module.packages.iter().try_for_each(|(name, _)| link(lab, name, &built.join(name)))
}

fn ensure_module(lab: &Lab, module: &Module, go: &Path) -> Result<PathBuf> {
    let directory = lab.root.join(module.directory);
    let version = command::run(go::at(go).args(["env", "GOVERSION"]).current_dir(&directory))
        .context("Go cannot fetch the version of itself that is required; it is on https://go.dev/dl/ as well")?;
    let read = |name: &str| {
        fs::read_to_string(directory.join(name))
            .with_context(|| format!("cannot read {name} in {}", directory.display()))
    };
    let (requirements, sums) = (read("go.mod")?, read("go.sum")?);
    let own = module.own.map(read).transpose()?;
    let stamps = stamps(&kubernetes_version(&requirements));
    let mut sources = vec![&requirements, &sums, version.trim(), &stamps, COMPILER_FLAGS];
    sources.extend(own.as_deref());
    let name = &digest::hex(sources.join("\n").as_bytes())[..16];

    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let kept = cache.join(name).join("bin");
    // Two checkouts that build at the same time would each use all of the machine's memory for the same result.
    let lock = File::create(cache.join("lock")).context("cannot create the cache's lock")?;
    if !kept.is_dir() && lock.try_lock().is_err() {
        progress::step("waiting for another lab that is building", || Ok(lock.lock()?))?;
    }
    if !kept.is_dir() {
        let partial = cache.join(format!("{name}.partial"));
        let _ = fs::remove_dir_all(&partial);
        build(module, go, &directory, &stamps, &partial.join("bin"))?;
        fs::rename(&partial, cache.join(name)).context("cannot put the built programs into place")?;
    }
    Ok(kept)
}

/// One call for all programs: while one is linked, which keeps only one core busy, others are compiled.
fn build(module: &Module, go: &Path, directory: &Path, stamps: &str, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    progress::step(format!("building {} ({} programs)", module.name, module.packages.len()), || {
        let mut go = go::at(go);
        go.args(["build", "-trimpath", "-gcflags", COMPILER_FLAGS, "-ldflags", stamps, "-o"]).arg(into);
        go.args(module.packages.iter().map(|(_, package)| package));
        // Static programs run in any namespace and image.
        go.current_dir(directory).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly");
        command::run(&mut go)?;
        for (name, package) in module.packages {
            fs::rename(into.join(built_name(package)), into.join(name))
                .with_context(|| format!("no {name} was built"))?;
        }
        Ok(())
    })
}

/// The name that Go gives to a program: the last element of its path that is no major version.
fn built_name(package: &str) -> &str {
    let is_version = |element: &str| element.strip_prefix('v').is_some_and(|rest| rest.parse::<u32>().is_ok());
    package.rsplit('/').find(|element| !is_version(element)).unwrap_or(package)
}

/// Kubernetes checks its own version at run time (kubelet refuses an older API server), and only its own build scripts would set it.
fn stamps(version: &str) -> String {
    let minor = version.split('.').nth(1).unwrap_or_default();
    let values = [
        ("gitVersion", version),
        ("gitMajor", "1"),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
        ("gitCommit", "0000000"),
        ("buildDate", "1970-01-01T00:00:00Z"),
    ];
    let packages = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
    let stamps = packages
        .iter()
        .flat_map(|package| values.iter().map(move |(key, value)| format!(" -X {package}.{key}={value}")));
    stamps.fold(String::from("-s -w"), |flags, stamp| flags + &stamp)
}

/// The version of Kubernetes that a `go.mod` requires; for one without Kubernetes it does not matter.
fn kubernetes_version(requirements: &str) -> String {
    let version = requirements.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    version.and_then(|rest| rest.split(' ').next()).unwrap_or("v1.0.0").to_owned()
}

fn cache() -> Result<PathBuf> {
    let named = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = named.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set; the built programs need a place")?.join("podtap/lab"))
}

fn link(lab: &Lab, name: &str, program: &Path) -> Result<()> {
    let path = lab.bin(name);
    if CLIENTS.contains(&name) {
        write_whole(&path, wrapper(program, &lab.path("kubeconfig")))?;
        return Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?);
    }
    if fs::read_link(&path).is_ok_and(|old| old == program) {
        return Ok(());
    }
    let _ = fs::remove_file(&path);
    symlink(program, &path).with_context(|| format!("cannot link {}", path.display()))
}

fn wrapper(program: &Path, kubeconfig: &Path) -> String {
    format!(
        "#!/bin/sh\nexport KUBECONFIG=\"${{KUBECONFIG:-{}}}\"\nexec {} \"$@\"\n",
        kubeconfig.display(),
        program.display()
    )
}

/// Copies the running program to the others. A copy, because the next build replaces the original while processes of the lab run it.
fn install_self(lab: &Lab) -> Result<()> {
    let (own, installed) = (env::current_exe()?, lab.bin("lab"));
    if own == installed {
        return Ok(());
    }
    write_whole(&installed, fs::read("/proc/self/exe").context("cannot read this program")?)?;
    Ok(fs::set_permissions(&installed, fs::Permissions::from_mode(0o755))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_module_names_every_program_as_a_tool() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.join("../..");
        for module in [KUBERNETES, HELM, KREW, COREDNS] {
            let requirements = fs::read_to_string(root.join(module.directory).join("go.mod")).expect("go.mod");
            for (name, package) in module.packages {
                let tool = requirements.lines().any(|line| line.trim().trim_start_matches("tool ") == *package);
                assert!(tool, "{name}: {package} is no tool of {}", module.directory);
            }
        }
    }

    #[test]
    fn a_program_is_named_as_go_names_it() {
        assert_eq!(built_name("k8s.io/kubernetes/cmd/kubelet"), "kubelet");
        assert_eq!(built_name("go.etcd.io/etcd/server/v3"), "server");
        let all: Vec<_> = KUBERNETES.packages.iter().map(|(_, package)| built_name(package)).collect();
        assert!(all.iter().all(|name| all.iter().filter(|other| *other == name).count() == 1), "{all:?}");
    }

    #[test]
    fn the_stamp_is_the_version_that_is_required() {
        let version = kubernetes_version(
            "require (\n\tk8s.io/kubelet v0.35.4 // indirect\n\tk8s.io/kubernetes v1.35.4 // indirect\n)",
        );
        assert_eq!(version, "v1.35.4");
        let flags = stamps(&version);
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.35.4 "));
        assert!(flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=35 "));
    }

    #[test]
    fn a_client_keeps_the_cluster_that_was_chosen_for_it() {
        let script = wrapper(Path::new("/cache/kubectl"), Path::new("/state/kubeconfig"));
        assert!(script.contains("${KUBECONFIG:-/state/kubeconfig}"));
        assert!(script.contains("exec /cache/kubectl \"$@\""));
    }
}
