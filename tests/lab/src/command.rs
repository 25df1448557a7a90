//! Running other programs, with errors that have the command and its output.

use std::env;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program and returns its standard output; fails with its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = prepare(command)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    answer(command, &output)
}

/// Like [`run`], with `input` on its standard input.
pub fn run_with(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading reports the reason itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    answer(command, &output)
}

/// Splits `line` at spaces and runs it: for words without spaces.
pub fn line(line: &str) -> Result<String> {
    let mut words = line.split(' ');
    run(Command::new(words.next().unwrap_or_default()).args(words))
}

/// The `PATH` of an ordinary user lacks directories that are needed here, even after becoming root.
fn prepare(command: &mut Command) -> &mut Command {
    command.env("PATH", search_path(&env::var("PATH").unwrap_or_default()))
}

/// Adds the directories for administrators to a `PATH`.
pub fn search_path(path: &str) -> String {
    let mut directories: Vec<_> = path.split(':').filter(|directory| !directory.is_empty()).collect();
    for standard in ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        if !directories.contains(&standard) {
            directories.push(standard);
        }
    }
    directories.join(":")
}

fn answer(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let message = String::from_utf8_lossy(&output.stderr);
        let message = last_lines(message.trim(), 20);
        bail!("{} {}: {}\n{message}", command.get_program().display(), words.join(" "), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_and_the_message_come_back() {
        assert_eq!(line("echo a b").expect("echo"), "a b\n");
        let message = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).expect_err("fails").to_string();
        assert!(message.contains("why") && message.contains('3'), "{message}");
        assert_eq!(run_with(&mut Command::new("cat"), "text").expect("cat"), "text");
    }

    #[test]
    fn the_search_path_is_completed_at_its_end() {
        assert_eq!(
            search_path("/opt/bin:/usr/bin"),
            "/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"
        );
    }

    #[test]
    fn the_end_of_a_short_text_is_all_of_it() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
