//! The documents cover every reason, field, metric and setting.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use podtap_model::Reason;
use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(super::top().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The text between each `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> BTreeSet<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split_once(after)).map(|(found, _)| found).collect()
}

fn headings(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("## ")).collect()
}

#[test]
fn every_reason_has_a_section() {
    let troubleshooting = read("docs/troubleshooting.md");
    let reference = read("docs/reference.md");
    let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let headings = headings(&troubleshooting);
    for reason in &reasons {
        assert!(headings.contains(reason), "docs/troubleshooting.md has no section “## {reason}”");
        assert!(reference.contains(&format!("`{reason}`")), "docs/reference.md does not have the reason `{reason}`");
    }
    // Headings of one word are reasons, and must still exist; longer headings are about something else.
    for heading in headings.iter().filter(|heading| !heading.contains(' ')) {
        assert!(reasons.contains(heading), "“## {heading}” is no longer a reason");
    }
}

/// One field of a kind.
#[derive(Clone, Debug, PartialEq)]
struct Field {
    /// As `spec.destinations[].node.name`.
    path: String,
    schema: Value,
}

/// All fields below a schema, objects and lists included.
fn fields(path: &str, schema: &Value, found: &mut Vec<Field>) {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        found.push(Field { path: path.clone(), schema: schema.clone() });
        fields(&path, schema, found);
        fields(&format!("{path}[]"), &schema["items"], found);
    }
}

/// Kind and fields of each committed definition.
fn kinds() -> BTreeMap<String, Vec<Field>> {
    let files = fs::read_dir(super::top().join("crds")).expect("crds/ exists");
    let kind = |file: fs::DirEntry| {
        let text = fs::read_to_string(file.path()).expect("a definition is text");
        let definition: Value = serde_saphyr::from_str(&text).expect("a definition is YAML");
        let mut found = Vec::new();
        fields("", &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut found);
        (definition["spec"]["names"]["kind"].as_str().expect("a kind has a name").to_owned(), found)
    };
    files.map(|file| kind(file.expect("crds/ is readable"))).collect()
}

/// Rows of the tables in a kind's section, by the text in backticks in the first cell.
fn rows<'a>(reference: &'a str, kind: &str) -> BTreeMap<&'a str, &'a str> {
    let section = reference.split("\n## ").find(|section| section.lines().next() == Some(kind)).unwrap_or_default();
    let row = |line: &'a str| Some((line.strip_prefix("| `")?.split_once('`')?.0, line));
    section.lines().filter_map(row).collect()
}

#[test]
fn every_field_is_in_the_reference() {
    let reference = read("docs/reference.md");
    let kinds = kinds();
    assert_eq!(kinds.keys().collect::<Vec<_>>(), ["ClusterPodTap", "NodeTap", "PodTap", "PodTapPolicy"]);
    let of_pod_tap = kinds["PodTap"].clone();
    for (kind, mut fields) in kinds {
        // Its section has only what differs.
        if kind == "ClusterPodTap" {
            assert!(fields.len() > of_pod_tap.len() / 2);
            fields.retain(|field| !of_pod_tap.contains(field));
        }
        let rows = rows(&reference, &kind);
        assert!(!rows.is_empty(), "docs/reference.md has no section “## {kind}” with tables");
        for Field { path, schema } in &fields {
            // `spec` and `status` themselves are headings.
            if matches!(path.as_str(), "spec" | "status") {
                continue;
            }
            let row = rows.get(path.as_str()).unwrap_or_else(|| panic!("docs/reference.md, {kind}: no row for {path}"));
            // Cells: before the first bar, name, type, default, meaning.
            let cells: Vec<_> = row.split('|').collect();
            assert_eq!(cells.len(), 6, "{kind}: {row}");
            for value in schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                assert!(row.contains(&format!("`{value}`")), "{kind}: {path} may be {value}: {row}");
            }
            if let Some(default) = schema.get("default").filter(|default| !default.is_array() && !default.is_object()) {
                let words = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
                assert_eq!(cells[3].trim(), format!("`{words}`"), "{kind}: the default of {path}");
            }
            for limit in ["maxItems", "maxLength"].into_iter().filter_map(|name| schema[name].as_i64()) {
                // For an interface name, the limit in its rule is the relevant one: 15.
                assert!(row.contains(&limit.to_string()) || row.contains("15 char"), "{kind}: {path} up to {limit}");
            }
        }
        for path in rows.keys() {
            assert!(fields.iter().any(|field| field.path == *path), "docs/reference.md, {kind}: no such field {path}");
        }
    }
}

/// All sources of a crate, one after the other.
fn sources(directory: &str) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(super::top().join(directory)).expect("a crate has sources") {
        let path = entry.expect("sources are readable").path();
        if path.is_dir() {
            let inner = path.strip_prefix(super::top()).expect("it is below the top").to_string_lossy().into_owned();
            text.push_str(&sources(&inner));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source is text"));
        }
    }
    text
}

#[test]
fn metrics_and_environment_are_in_the_reference() {
    let (reference, operator) = (
        read("docs/reference.md"),
        ["controller", "agent", "runtime"].map(|package| sources(&format!("operator/{package}/src"))).concat(),
    );
    let one_line: String = operator.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
    let mut metrics: BTreeSet<String> =
        between(&one_line, "registry.register(\"", "\"").into_iter().map(str::to_owned).collect();
    for call in between(&one_line, "registry.register_with_unit(\"", ");") {
        let name = call.split_once('"').map(|(name, _)| name);
        let unit = call.split_once("Unit::").and_then(|(_, rest)| rest.split_once(','));
        let (name, (unit, _)) = name.zip(unit).expect("a name and a unit");
        metrics.insert(format!("{name}_{}", unit.to_lowercase()));
    }
    assert!(metrics.len() >= 12, "metrics are found: {metrics:?}");
    for metric in metrics {
        let [plain, counter] = [format!("`podtap_{metric}`"), format!("`podtap_{metric}_total`")];
        assert!(reference.contains(&plain) || reference.contains(&counter), "docs/reference.md has no metric {plain}");
    }
    let variables = between(&operator, "env = \"", "\"");
    assert!(variables.len() >= 9, "variables are found: {variables:?}");
    for variable in variables {
        assert!(reference.contains(&format!("`{variable}`")), "docs/reference.md has no variable {variable}");
    }
}

/// Names of the values in a schema, such as `image.tag`; an object without properties is a value itself.
fn values(path: &str, schema: &Value, found: &mut Vec<String>) {
    match schema["properties"].as_object() {
        Some(properties) => {
            for (name, schema) in properties {
                values(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, schema, found);
            }
        }
        None => found.push(path.to_owned()),
    }
}

#[test]
fn every_value_of_the_chart_is_in_the_installation_guide() {
    let guide = read("docs/install.md");
    let schema: Value =
        serde_json::from_str(&read("deploy/chart/podtap/values.schema.json")).expect("the schema is JSON");
    let mut found = Vec::new();
    values("", &schema, &mut found);
    // Helm's own.
    found.retain(|value| value != "global");
    assert!(found.len() > 8, "values are found: {found:?}");
    let rows: BTreeSet<_> =
        guide.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect();
    for value in &found {
        assert!(rows.contains(value.as_str()), "docs/install.md has no row for the value {value}");
    }
    for row in rows {
        assert!(found.iter().any(|value| value == row), "docs/install.md: the chart has no value {row}");
    }
}

#[test]
fn these_guards_see_what_they_guard_against() {
    assert_eq!(headings("# No\n## One\ntext\n## Two words\n### No"), ["One", "Two words"].into());
    let mut found = Vec::new();
    let schema = serde_json::json!({"properties": {"a": {"items": {"properties": {"b": {"type": "string"}}}}}});
    fields("", &schema, &mut found);
    assert_eq!(found.iter().map(|field| field.path.as_str()).collect::<Vec<_>>(), ["a", "a[].b"]);
    let mut found = Vec::new();
    values("", &serde_json::json!({"properties": {"a": {"properties": {"b": {}}}, "c": {}}}), &mut found);
    assert_eq!(found, ["a.b", "c"]);
    let text = "# R\n\n## K\n\n| field | |\n|---|---|\n| `a` | x |\n| no |\n\n## L\n\n| `b` | x |\n";
    assert_eq!(rows(text, "K").into_keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(rows(text, "M").len(), 0);
}
