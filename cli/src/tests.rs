use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use clap::{Arg, Args as _, Command, CommandFactory as _, Id};

use super::*;
use crate::tap_flags::TapFlags;

/// What clap checks of the definition of the command line.
#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// A key, as k9s's JSON schema of plugins has it (internal/config/json/schemas/plugins.json in derailed/k9s).
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugin {
    short_cut: String,
    description: String,
    scopes: BTreeSet<String>,
    command: String,
    args: Vec<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "checked by its type")]
    confirm: bool,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugins {
    plugins: BTreeMap<String, Plugin>,
}

#[test]
fn the_keys_of_k9s_are_commands() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/k9s/plugins.yaml");
    let file = fs::read_to_string(path).expect("the file exists");
    let Plugins { plugins } = serde_saphyr::from_str(&file).expect("it has the form of k9s");
    let mut taken = BTreeSet::new();
    for (name, plugin) in plugins {
        assert!(plugin.short_cut.starts_with("Shift-") && !plugin.description.is_empty(), "{name}");
        for scope in plugin.scopes {
            assert!(taken.insert((plugin.short_cut.clone(), scope)), "{name}: a key has one meaning");
        }
        let line = match (plugin.command.as_str(), &plugin.args[..]) {
            ("kubectl", words) => format!("kubectl {}", words.join(" ")),
            // In a shell, to page what is printed.
            ("sh", [flag, script]) if flag == "-c" => script.split('|').next().unwrap_or_default().to_owned(),
            (command, _) => panic!("{name}: {command}"),
        };
        // What k9s replaces.
        let line = ["$NAMESPACE", "$NAME", "$CONTEXT"].iter().fold(line, |line, name| line.replace(name, "x"));
        let words = line.strip_prefix("kubectl podtap ").unwrap_or_else(|| panic!("{name}: {line}")).split_whitespace();
        let parsed = Cli::try_parse_from(std::iter::once("kubectl podtap").chain(words));
        if let Err(error) = parsed {
            panic!("{name}: {error}");
        }
    }
}

/// Rows of the tables with flags in the section of this name: all flags in the first cell, and the cell with the default.
fn rows<'a>(page: &'a str, section: &str) -> Vec<(BTreeSet<&'a str>, &'a str)> {
    let text = page.split("\n## ").find(|text| text.lines().next() == Some(section));
    let text = text.unwrap_or_else(|| panic!("docs/cli.md has no section “## {section}”"));
    let row = |line: &'a str| {
        // Before the first bar, flags, default, meaning, and after the last bar.
        let ["", flags, default, _, ""] = *line.split('|').collect::<Vec<_>>() else { return None };
        let flags: BTreeSet<_> = flags.split('`').filter(|word| word.starts_with('-')).collect();
        (!flags.is_empty() && !line.starts_with("|-")).then(|| (flags, default.trim()))
    };
    text.lines().filter_map(row).collect()
}

fn flags(argument: &Arg) -> BTreeSet<String> {
    let long = argument.get_long().map(|long| format!("--{long}"));
    long.into_iter().chain(argument.get_short().map(|short| format!("-{short}"))).collect()
}

/// That a section has a row for each of these flags, and no other, with its default.
fn assert_documented<'a>(page: &str, section: &str, arguments: impl Iterator<Item = &'a Arg>) {
    let mut rows = rows(page, section);
    for argument in
        arguments.filter(|argument| argument.get_long().is_some_and(|long| long != "help" && long != "version"))
    {
        let flags = flags(argument);
        let found = rows.iter().position(|(row, _)| row.iter().copied().eq(flags.iter().map(String::as_str)));
        let (_, default) = rows.remove(found.unwrap_or_else(|| panic!("docs/cli.md, {section}: no row for {flags:?}")));
        let is_switch = !argument.get_action().takes_values();
        if let [value] = argument.get_default_values()
            && !is_switch
        {
            assert_eq!(
                default,
                format!("`{}`", value.to_string_lossy()),
                "docs/cli.md, {section}: the default of {flags:?}"
            );
        }
        assert_eq!(argument.is_required_set(), default == "required", "docs/cli.md, {section}: {flags:?}");
    }
    assert!(rows.is_empty(), "docs/cli.md, {section}: there is no {rows:?}");
}

#[test]
fn every_flag_is_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let page = fs::read_to_string(path).expect("the page exists");
    let command = Cli::command();
    let is_global = |argument: &&Arg| argument.is_global_set();
    assert_documented(&page, "Flags of every verb", command.get_arguments().filter(is_global));
    let of_taps = TapFlags::augment_args(Command::new("create"));
    let of_taps: BTreeSet<&Id> = of_taps.get_arguments().map(Arg::get_id).collect();
    let verbs: Vec<&Command> = command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
    assert_eq!(verbs.len(), 17);
    for verb in verbs {
        let section = match verb.get_name() {
            "suspend" | "resume" | "delete" => "suspend, resume and delete",
            name => name,
        };
        // plan takes those of create, which has a row for each, and capture some of them, one with another default.
        let is_of_create = |argument: &Arg| of_taps.contains(argument.get_id()) && argument.get_long() != Some("rate");
        let is_own = |argument: &&Arg| match section {
            "plan" => !of_taps.contains(argument.get_id()),
            "capture" => !is_of_create(argument),
            _ => true,
        };
        assert_documented(&page, section, verb.get_arguments().filter(is_own));
    }
    for exit in [
        Exit::Done,
        Exit::Error,
        Exit::Usage,
        Exit::Partly,
        Exit::Refused,
        Exit::NotPermitted,
        Exit::TimedOut,
        Exit::Interrupted,
    ] {
        assert!(page.contains(&format!("\n| {} | ", exit as u8)), "docs/cli.md has no row for {exit:?}");
    }
}
