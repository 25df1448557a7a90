//! What the user sees besides data: progress, warnings and questions, on standard error. Data goes to standard output.

use std::{
    env,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    process,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anstream::{eprint, eprintln};
use clap::{
    Args, ColorChoice, ValueEnum,
    builder::styling::{AnsiColor, Style},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::oneshot;

use crate::exit::{Exit, Failure, Outcome};

/// Flags of every verb.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Messages")]
pub struct Console {
    /// Colors. With auto, they are used at a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto)]
    #[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
    pub color: ColorChoice,
    /// How progress is shown. With auto, a spinner at a terminal, and a line per step elsewhere; with json, each message is a JSON object
    #[arg(long, global = true, value_name = "HOW", value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
    /// No progress, only results, warnings and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Print the requests to the API server
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// A spinner at a terminal, or else lines.
    Auto,
    /// A line per step.
    Lines,
    /// A JSON object per step, warning and error, for other programs.
    Json,
}

/// How this process writes to standard error.
struct Screen {
    is_json: bool,
    /// Shows the current step while it lasts.
    spinner: Option<ProgressBar>,
    start: Instant,
}

static SCREEN: OnceLock<Screen> = OnceLock::new();

impl Screen {
    fn get() -> &'static Self {
        SCREEN.get_or_init(|| Self { is_json: false, spinner: None, start: Instant::now() })
    }

    /// A message of a type, which is styled if it is not JSON.
    fn message(&self, kind: &str, text: &str, style: impl FnOnce(&str) -> String) {
        let text = plain(text);
        if self.is_json {
            eprintln!("{}", json!({"type": kind, "message": text, "seconds": self.start.elapsed().as_secs()}));
        } else {
            self.clear();
            eprintln!("{}", style(&text));
        }
    }

    /// Makes room for what stays on the screen.
    fn clear(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.disable_steady_tick();
            spinner.finish_and_clear();
        }
    }

    /// Shows a step until something else is written.
    fn spin(&self, text: &str) -> bool {
        self.spinner.as_ref().is_some_and(|spinner| {
            spinner.set_message(plain(text));
            spinner.reset();
            spinner.enable_steady_tick(Duration::from_millis(100));
            true
        })
    }
}

/// A spinner at a terminal that can move its cursor.
fn spinner() -> Option<ProgressBar> {
    let is_able = io::stderr().is_terminal() && env::var_os("TERM").is_some_and(|terminal| terminal != "dumb");
    let style = ProgressStyle::with_template("{spinner} {wide_msg}").ok()?;
    is_able.then(|| ProgressBar::new_spinner().with_style(style))
}

/// 128 and the number of SIGPIPE.
const SIGPIPE_EXIT: i32 = 141;

/// Something that is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Something to be aware of.
pub const CAUTION: Style = AnsiColor::Yellow.on_default();
/// Something that is wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// Text in a style.
pub fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Writes data. A reader that has read enough ends the program, as SIGPIPE would if Rust did not ignore it.
pub fn data(text: &str) {
    bytes(text.as_bytes());
}

/// Writes data that need not be text.
pub fn bytes(bytes: &[u8]) {
    Screen::get().clear();
    let mut output = anstream::stdout().lock();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("{} standard output: {error}", styled(BAD, "error:"));
        }
        process::exit(if error.kind() == io::ErrorKind::BrokenPipe { SIGPIPE_EXIT } else { Exit::Error as i32 });
    }
}

/// Writes a line of data.
pub fn line(text: &str) {
    data(&format!("{text}\n"));
}

/// Text of the cluster without control characters: a terminal would obey them.
pub fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(plain).collect()
}

/// A number of things.
pub fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

impl Console {
    /// Applies the flags to this process.
    pub fn init(self) {
        match self.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        }
        .write_global();
        // Requests are written by other means, and would end up in its line.
        let spinner = (self.progress == Progress::Auto && !self.verbose).then(spinner).flatten();
        let is_json = self.progress == Progress::Json;
        SCREEN.get_or_init(|| Screen { is_json, spinner, start: Instant::now() });
        if self.verbose {
            tracing_subscriber::fmt()
                .with_writer(io::stderr)
                .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
                .init();
        }
    }

    /// Something that is done.
    pub fn progress(self, text: &str) {
        if !self.quiet {
            Screen::get().message("progress", text, str::to_owned);
        }
    }

    /// What is being done: at a terminal, it is shown until it is over.
    pub fn step(self, text: &str) {
        if !self.quiet && !Screen::get().spin(text) {
            self.progress(text);
        }
    }
}

/// Something that the user should know.
pub fn warn(text: &str) {
    Screen::get().message("warning", text, |text| format!("{} {text}", styled(CAUTION, "warning:")));
}

/// The end of a command that failed.
pub fn fail(failure: &Failure) {
    Screen::get().message("error", &failure.message, |text| format!("{} {text}", styled(BAD, "error:")));
}

/// Leaves nothing on the screen that is not meant to stay.
pub fn end() {
    Screen::get().clear();
}

/// The exit code of a command about several objects after one more of them: the first one that is not [`Exit::Done`]. A failure is
/// reported, and keeps none of the others.
pub fn after(exit: Exit, outcome: Outcome) -> Exit {
    let next = outcome.unwrap_or_else(|failure| {
        fail(&failure);
        failure.exit
    });
    if exit == Exit::Done { next } else { exit }
}

/// Asks whether to continue. Without a terminal, the user has to say yes beforehand.
pub async fn ask(consequence: &str, yes: bool) -> Outcome<()> {
    if agrees(consequence, yes).await? { Ok(()) } else { Err(Failure::usage("nothing was changed")) }
}

/// Whether the user agrees.
pub async fn agrees(consequence: &str, yes: bool) -> Outcome<bool> {
    if yes {
        return Ok(true);
    }
    let screen = Screen::get();
    if screen.is_json || !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{consequence}: confirm with -y")));
    }
    screen.clear();
    eprint!("{}. Continue? [y/N] ", plain(consequence));
    let answer = in_thread(|| {
        let mut answer = String::new();
        let read = io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
        read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
    });
    Ok(answer.await == Some(true))
}

/// What `work` returns, in a thread of its own: while it waits for a terminal, SIGINT ends the command. None if it panics.
pub async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, result) = oneshot::channel();
    thread::spawn(move || {
        // Without a receiver, the command has ended.
        let _ = sender.send(work());
    });
    result.await.ok()
}
