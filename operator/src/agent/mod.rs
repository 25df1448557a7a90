//! The agent.

use std::convert::Infallible;

#[derive(clap::Args)]
pub struct Args {}

pub async fn run(_args: Args) -> Result<(), Infallible> {
    Ok(())
}
