//! `man`: writes the manual pages, when archives are made. Not a verb for users.

use std::{fs, io, path::PathBuf};

use clap::{Args, CommandFactory as _};

use crate::{
    Cli,
    exit::{Exit, Failure, Outcome},
};

/// Arguments of `man`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Folder, which is made if it does not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes a page about the program, and one for each verb.
pub fn run(Arguments { folder }: &Arguments) -> Outcome {
    // man(1) takes the words of a command as one name, with hyphens: kubectl-podtap-create.
    let command = Cli::command().name("kubectl-podtap");
    let written: io::Result<()> = fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder));
    written.map(|()| Exit::Done).map_err(|error| Failure::error(format!("{}: {error}", folder.display())))
}
