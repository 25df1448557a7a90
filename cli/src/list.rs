//! `list`: the API server's own table, as `kubectl get` shows it.

use clap::{Args, ValueEnum};
use futures_util::TryStreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use kube::{
    Resource as _,
    api::{ListParams, WatchEvent, WatchParams},
    core::{DynamicObject, Request},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    connection::{Cluster, Connection},
    console::{Console, data, line},
    exit::{Exit, Failure, Outcome},
    manifest,
    table::Columns,
    tap::Kind,
};

/// Has the API server make the table (API concepts, "Receiving resources as Tables").
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
/// Seconds after which the API server ends a watch: before the client would take the connection for dead.
const WATCH_SECONDS: u32 = 290;

/// Arguments of `list`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Kind of tap
    #[arg(value_enum, default_value_t = Kind::PodTap)]
    kind: Kind,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// More columns, or the objects
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Format>,
    /// Print changes as they come, until SIGINT
    #[arg(short, long)]
    watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Table {
    metadata: ListMeta,
    /// Absent in all but the first event of a watch.
    column_definitions: Vec<Column>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Clone, Debug, Deserialize)]
struct Row {
    cells: Vec<Value>,
    object: PartialObject,
}

#[derive(Clone, Debug, Deserialize)]
struct PartialObject {
    metadata: ObjectMeta,
}

impl Table {
    /// The rows that are shown, without a heading.
    fn rows(&self, columns: &[Column], shown: &Shown) -> Vec<Vec<String>> {
        let row = |row: &Row| {
            let namespace = shown.with_namespace.then(|| row.object.metadata.namespace.clone().unwrap_or_default());
            let cells =
                row.cells.iter().zip(columns).filter(|(_, column)| shown.has(column)).map(|(cell, _)| text(cell));
            namespace.into_iter().chain(cells).collect()
        };
        self.rows.iter().map(row).collect()
    }
}

fn text(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Which columns are shown.
struct Shown {
    wide: bool,
    with_namespace: bool,
}

impl Shown {
    fn has(&self, column: &Column) -> bool {
        self.wide || column.priority == 0
    }

    fn heading(&self, columns: &[Column]) -> Vec<String> {
        let namespace = self.with_namespace.then(|| "NAMESPACE".to_owned());
        namespace.into_iter().chain(columns.iter().filter(|c| self.has(c)).map(|c| c.name.to_uppercase())).collect()
    }
}

/// Lists taps.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let is_table = matches!(arguments.output, None | Some(Format::Wide));
    if arguments.watch && !is_table {
        return Err(Failure::usage("-w prints rows: leave out -o, or use -o wide"));
    }
    let cluster = connection.open().await?;
    if is_table { rows(&arguments, &cluster, console).await } else { objects(&arguments, &cluster).await }
}

fn namespace<'a>(arguments: &Arguments, cluster: &'a Cluster) -> Option<&'a str> {
    let is_one = arguments.kind == Kind::PodTap && !arguments.all_namespaces;
    is_one.then_some(cluster.namespace.as_str())
}

async fn objects(arguments: &Arguments, cluster: &Cluster) -> Outcome {
    let resource = arguments.kind.resource();
    let mut list = arguments.kind.api(cluster, namespace(arguments, cluster)).list(&parameters(arguments)).await?;
    for object in &mut list.items {
        object.metadata.managed_fields = None;
        // The items of a list lack them.
        object.types =
            Some(kube::core::TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() });
    }
    let document = json!({"apiVersion": "v1", "kind": "List", "items": list.items});
    match arguments.output {
        Some(Format::Json) => data(&manifest::json(&document)),
        Some(Format::Yaml) => data(&manifest::yaml(&document)?),
        _ => {
            for object in list.items {
                line(&arguments.kind.object(&object.metadata.name.unwrap_or_default()));
            }
        }
    }
    Ok(Exit::Done)
}

fn parameters(arguments: &Arguments) -> ListParams {
    ListParams { label_selector: arguments.selector.clone(), ..ListParams::default() }
}

async fn rows(arguments: &Arguments, cluster: &Cluster, console: Console) -> Outcome {
    let namespace = namespace(arguments, cluster);
    let path = DynamicObject::url_path(&arguments.kind.resource(), namespace);
    let shown = Shown {
        wide: arguments.output == Some(Format::Wide),
        with_namespace: arguments.kind == Kind::PodTap && arguments.all_namespaces,
    };
    let mut widths = Columns::default();
    loop {
        let list = Request::new(&path).list(&parameters(arguments)).map_err(kube::Error::BuildRequest)?;
        let table: Table = cluster.client.request(as_table(list)).await?;
        let columns = table.column_definitions.clone();
        if table.rows.is_empty() {
            let scope = namespace.map_or("the cluster".to_owned(), |namespace| format!("the namespace {namespace}"));
            console.progress(&format!("no {} in {scope}", arguments.kind.resource().kind));
        }
        if arguments.watch || !table.rows.is_empty() {
            let heading = vec![shown.heading(&columns)];
            data(&widths.text(&[heading, table.rows(&columns, &shown)].concat()));
        }
        if !arguments.watch {
            return Ok(Exit::Done);
        }
        let mut version = table.metadata.resource_version;
        while let Some(from) = version {
            version = watch(arguments, cluster, &path, from, |table| {
                data(&widths.text(&table.rows(&columns, &shown)));
            })
            .await?;
        }
    }
}

/// Watches until the API server ends the watch, and returns the version to continue from; none if that is too old.
async fn watch(
    arguments: &Arguments,
    cluster: &Cluster,
    path: &str,
    mut version: String,
    mut print: impl FnMut(&Table),
) -> Outcome<Option<String>> {
    let parameters = WatchParams {
        label_selector: arguments.selector.clone(),
        timeout: Some(WATCH_SECONDS),
        send_initial_events: false,
        bookmarks: true,
        ..WatchParams::default()
    };
    let request = Request::new(path).watch(&parameters, &version).map_err(kube::Error::BuildRequest)?;
    let events = cluster.client.request_events::<Table>(as_table(request)).await?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(table) | WatchEvent::Modified(table) | WatchEvent::Deleted(table) => {
                let seen = table.rows.last().and_then(|row| row.object.metadata.resource_version.clone());
                version = seen.unwrap_or(version);
                print(&table);
            }
            WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
            WatchEvent::Error(status) if status.code == 410 => return Ok(None),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        }
    }
    Ok(Some(version))
}

fn as_table<B>(mut request: http::Request<B>) -> http::Request<B> {
    request.headers_mut().insert(http::header::ACCEPT, http::HeaderValue::from_static(TABLE));
    request
}
