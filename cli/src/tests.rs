use clap::CommandFactory as _;

use super::*;

/// What clap checks of the definition of the command line.
#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}
