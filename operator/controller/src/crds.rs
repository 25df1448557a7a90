//! Generates the files under `crds/` from the Rust types.

use std::{fs, io, path::PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Directory to write one file per kind to; standard output if left out.
    #[arg(long)]
    output: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    for (file, definition) in podtap_api::definitions() {
        let yaml = serde_saphyr::to_string(&definition)?;
        match &args.output {
            Some(directory) => fs::write(directory.join(file), yaml).map_err(|e| {
                io::Error::new(e.kind(), format!("cannot write {file} to {}: {e}", directory.display()))
            })?,
            None => print!("---\n{yaml}"),
        }
    }
    Ok(())
}
