//! What the user sees besides data: progress, warnings and questions, on standard error. Data goes to standard output.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    process, thread,
};

use anstream::{eprint, eprintln};
use clap::{
    Args, ColorChoice,
    builder::styling::{AnsiColor, Style},
};
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
    /// No progress, only results, warnings and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Print the requests to the API server
    #[arg(short, long, global = true)]
    pub verbose: bool,
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
        if self.verbose {
            tracing_subscriber::fmt()
                .with_writer(io::stderr)
                .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
                .init();
        }
    }

    /// A step.
    pub fn progress(self, text: &str) {
        if !self.quiet {
            eprintln!("{}", plain(text));
        }
    }
}

/// Something that the user should know.
pub fn warn(text: &str) {
    eprintln!("{} {}", styled(CAUTION, "warning:"), plain(text));
}

/// The end of a command that failed.
pub fn fail(failure: &Failure) {
    eprintln!("{} {}", styled(BAD, "error:"), plain(&failure.message));
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
///
/// A thread of its own reads the answer: meanwhile, SIGINT ends the command.
pub async fn ask(consequence: &str, yes: bool) -> Outcome<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{consequence}: confirm with -y")));
    }
    eprint!("{}. Continue? [y/N] ", plain(consequence));
    let (sender, answer) = oneshot::channel();
    thread::spawn(move || {
        let mut answer = String::new();
        let read = io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
        let _ = sender.send(read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"));
    });
    if answer.await == Ok(true) { Ok(()) } else { Err(Failure::usage("nothing was changed")) }
}
