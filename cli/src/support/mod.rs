//! `support`: an archive for debugging. It reads no Secret.

mod archive;
mod inspect;
mod redact;

use std::{
    fmt::Debug,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Event, Namespace, Node, Pod},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, LogParams},
};
use podtap_api::{ClusterPodTap, NodeTap, PodTap, PodTapPolicy};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    connection::{Cluster, Connection},
    console::{Console, line},
    create::own_name,
    exit::{Exit, Failure, Outcome},
    installation::{InstallationFlags, OWN},
    manifest,
    support::{archive::Archive, redact::Redactor},
    version,
};

/// Objects of each kind.
const MAX_OBJECTS: usize = 5000;
/// Names of each kind that are replaced.
const MAX_NAMES: usize = 100_000;
/// Objects per request: a NodeTap may have a megabyte.
const PAGE: u32 = 20;
const PAGE_OF_NAMES: u32 = 500;
/// Of the log of a container.
const LOG_LINES: i64 = 20_000;
const LOG_BYTES: u32 = 4 << 20;

/// Arguments of `support`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// The archive; -: standard output
    #[arg(short, long, value_name = "FILE", default_value = "podtap-support.tgz")]
    file: PathBuf,
    /// Replace addresses and names
    #[arg(long)]
    redact: bool,
    #[command(flatten)]
    installation: InstallationFlags,
}

/// Writes the archive.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    // Without an answer, there would be an archive with nothing in it.
    let server = cluster.client.apiserver_version().await?;
    let to_standard_output = arguments.file.as_os_str() == "-";
    let failed = |error: io::Error| Failure::error(format!("cannot write {}: {error}", arguments.file.display()));
    let output: Box<dyn Write> =
        if to_standard_output { Box::new(io::stdout()) } else { Box::new(create(&arguments.file).map_err(failed)?) };
    let mut collection = Collection {
        archive: Archive::new(output, u64::try_from(Timestamp::now().as_second()).unwrap_or_default()),
        redactor: arguments.redact.then(Redactor::default),
        cluster: &cluster,
        namespace: &arguments.installation.podtap_namespace,
        console,
    };
    collection.all(json!(server)).await.map_err(failed)?;
    let is_complete = collection.archive.finish().map_err(failed)?;
    if !to_standard_output {
        line(&format!("{} written", arguments.file.display()));
    }
    if is_complete {
        return Ok(Exit::Done);
    }
    Err(Failure::new(Exit::Partly, "some parts are missing: index.txt in the archive tells which, and why"))
}

/// A file that only the user may read.
fn create(path: &PathBuf) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    // One that exists keeps its mode, and a device has to.
    #[cfg(unix)]
    if file.metadata()?.is_file() {
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    }
    Ok(file)
}

/// What is needed of a pod of PodTap.
struct OwnPod {
    name: String,
    node: String,
    component: String,
    /// Names of the containers, and whether they were restarted.
    containers: Vec<(String, bool)>,
}

impl From<Pod> for OwnPod {
    fn from(pod: Pod) -> Self {
        let statuses = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        let component = pod.metadata.labels.and_then(|labels| labels.get("app.kubernetes.io/component").cloned());
        Self {
            name: pod.metadata.name.unwrap_or_default(),
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            component: component.unwrap_or_default(),
            containers: statuses.into_iter().map(|status| (status.name, status.restart_count > 0)).collect(),
        }
    }
}

/// What is collected, and where it goes.
struct Collection<'a, W: Write> {
    archive: Archive<W>,
    redactor: Option<Redactor>,
    cluster: &'a Cluster,
    /// PodTap's.
    namespace: &'a str,
    console: Console,
}

impl<W: Write> Collection<'_, W> {
    async fn all(&mut self, server: Value) -> io::Result<()> {
        let client = || self.cluster.client.clone();
        let (namespace, all) = (self.namespace, ListParams::default());
        if self.redactor.is_some() {
            self.console.step("reading names");
            let user = own_name(self.cluster).await;
            self.redactor.iter_mut().zip(user).for_each(|(redactor, user)| redactor.learn("user", &user));
            self.learn::<Namespace>("namespace", Api::all(client())).await;
            self.learn::<Node>("node", Api::all(client())).await;
            self.learn::<PodTap>("tap", Api::all(client())).await;
            self.learn::<ClusterPodTap>("tap", Api::all(client())).await;
            self.learn::<Pod>("pod", Api::all(client())).await;
        }
        self.console.step("reading objects");
        self.value("server.json", &server)?;
        match version::document(self.cluster).await {
            Ok(versions) => self.value("versions.json", &versions)?,
            Err(failure) => self.missing("versions.json", &failure.message),
        }
        let own_namespace = &self.cluster.namespace;
        if !self.objects("podtaps", Api::<PodTap>::all(client()), &all, drop).await? {
            self.objects("podtaps", Api::<PodTap>::namespaced(client(), own_namespace), &all, drop).await?;
        }
        self.objects("clusterpodtaps", Api::<ClusterPodTap>::all(client()), &all, drop).await?;
        self.objects("podtappolicies", Api::<PodTapPolicy>::all(client()), &all, drop).await?;
        self.objects("nodetaps", Api::<NodeTap>::all(client()), &all, drop).await?;
        let own = all.clone().labels(OWN);
        self.objects("deployments", Api::<Deployment>::namespaced(client(), namespace), &own, drop).await?;
        // Before the events, whose messages name images of these.
        let mut pods = Vec::new();
        let keep = |pod| pods.push(OwnPod::from(pod));
        self.objects("pods", Api::<Pod>::namespaced(client(), namespace), &own, keep).await?;
        self.objects("events", Api::<Event>::namespaced(client(), namespace), &all, drop).await?;
        let of_controller = all.fields("reportingComponent=podtap-controller");
        if !self.objects("events-of-taps", Api::<Event>::all(client()), &of_controller, drop).await? {
            let events = Api::<Event>::namespaced(client(), own_namespace);
            self.objects("events-of-taps", events, &of_controller, drop).await?;
        }
        self.console.step("reading logs");
        for pod in &pods {
            self.logs(pod).await?;
        }
        let helpers: Vec<_> = pods.iter().filter(|pod| pod.component == "helper").collect();
        for (number, pod) in helpers.iter().enumerate() {
            self.console.step(&format!("inspecting nodes: {} of {}", number + 1, helpers.len()));
            let contents = inspect::inspect(&Api::namespaced(client(), namespace), &pod.name).await;
            self.text(&format!("inspect/{}.json", pod.node), contents)?;
        }
        Ok(())
    }

    /// Learns the names of all objects of a kind, as far as the user may list them.
    async fn learn<K>(&mut self, what: &'static str, api: Api<K>)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let mut parameters = ListParams::default().limit(PAGE_OF_NAMES);
        let mut count = 0;
        let incomplete = loop {
            let page = match api.list_metadata(&parameters).await {
                Ok(page) => page,
                Err(error) => break Some(Failure::from(error).message),
            };
            count += page.items.len();
            let names = page.items.iter().filter_map(|object| object.metadata.name.as_deref());
            let redactor = self.redactor.get_or_insert_default();
            names.for_each(|name| redactor.learn(what, name));
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                break None;
            }
            if count >= MAX_NAMES {
                break Some(format!("there are more than {MAX_NAMES}"));
            }
        };
        if let Some(why) = incomplete {
            self.missing(
                &format!("names of {}", K::plural(&())),
                &format!("those that only logs and messages have are not replaced: {why}"),
            );
        }
    }

    /// Adds a part for each object. Whether they could be listed.
    async fn objects<K>(
        &mut self,
        folder: &str,
        api: Api<K>,
        parameters: &ListParams,
        mut each: impl FnMut(K),
    ) -> io::Result<bool>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    {
        let mut parameters = parameters.clone().limit(PAGE);
        let mut count = 0;
        loop {
            let page = match api.list(&parameters).await {
                Ok(page) => page,
                Err(error) => {
                    self.missing(folder, &Failure::from(error).message);
                    return Ok(false);
                }
            };
            count += page.items.len();
            for object in page.items {
                let namespace = object.meta().namespace.clone().map(|name| format!("{name}/")).unwrap_or_default();
                let path = format!("{folder}/{namespace}{}.json", object.name_any());
                self.value(&path, &document(&object))?;
                each(object);
            }
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                return Ok(true);
            }
            if count >= MAX_OBJECTS {
                self.missing(folder, &format!("there are more than {count}"));
                return Ok(true);
            }
        }
    }

    async fn logs(&mut self, pod: &OwnPod) -> io::Result<()> {
        let OwnPod { name, component, containers, .. } = pod;
        if component == "collector" && self.redactor.is_some() {
            self.missing(&format!("logs/{name}"), "left out, since it may have flows with any names");
            return Ok(());
        }
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), self.namespace);
        for (container, has_restarted) in containers {
            for previous in [false, true].into_iter().filter(|previous| !previous || *has_restarted) {
                let parameters = LogParams {
                    container: Some(container.clone()),
                    previous,
                    tail_lines: Some(LOG_LINES),
                    limit_bytes: Some(LOG_BYTES.into()),
                    ..LogParams::default()
                };
                let log = api.logs(name, &parameters).await.map_err(Failure::from);
                let suffix = if previous { ".previous" } else { "" };
                let path = format!("logs/{name}/{container}{suffix}.log");
                // The kubelet counts lines from the end, and bytes from there on.
                if log.as_ref().is_ok_and(|log| log.len() >= LOG_BYTES as usize) {
                    self.missing(&path, &format!("only the first {LOG_BYTES} bytes of its last {LOG_LINES} lines"));
                }
                self.text(&path, log)?;
            }
        }
        Ok(())
    }

    /// Notes what the archive lacks.
    fn missing(&mut self, path: &str, why: &str) {
        match &mut self.redactor {
            Some(redactor) => self.archive.missing(&redactor.text(path), &redactor.text(why)),
            None => self.archive.missing(path, why),
        }
    }

    fn value(&mut self, path: &str, value: &Value) -> io::Result<()> {
        let Some(redactor) = &mut self.redactor else {
            return self.archive.add(path, manifest::json(value).as_bytes());
        };
        let mut value = value.clone();
        redactor.learn_all(&value);
        redactor.object(&mut value);
        self.archive.add(&with_names(redactor, path), manifest::json(&value).as_bytes())
    }

    fn text(&mut self, path: &str, text: Outcome<String>) -> io::Result<()> {
        let mut replaced = |text: String| match &mut self.redactor {
            Some(redactor) => redactor.text(&text),
            None => text,
        };
        let text = text.map(&mut replaced).map_err(|failure| replaced(failure.message));
        let path = self.redactor.as_mut().map_or_else(|| path.to_owned(), |redactor| with_names(redactor, path));
        match text {
            Ok(text) => self.archive.add(&path, text.as_bytes()),
            Err(why) => {
                self.archive.missing(&path, &why);
                Ok(())
            }
        }
    }
}

/// An object without what only field managers need.
fn document<K: Serialize + Resource<DynamicType = ()>>(object: &K) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = json!(K::api_version(&()));
    value["kind"] = json!(K::kind(&()));
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    value
}

/// A path in which each folder and the file are names.
fn with_names(redactor: &mut Redactor, path: &str) -> String {
    let (stem, extension) = path.rsplit_once('.').unwrap_or((path, ""));
    format!("{}.{extension}", redactor.text(stem))
}
