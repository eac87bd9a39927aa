//! The command line as it is typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Shows what Culvert is doing in this cluster.
#[derive(Debug, Parser)]
#[command(name = "culvert", disable_version_flag = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows connections, endpoints or gateways.
    Show(Show),
    /// Prints the version.
    Version,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    pub(crate) what: What,
    /// The cluster's record store: the directory that its daemons are given, not the broker's.
    #[arg(long, env = "CULVERT_RECORDS", value_name = "DIR")]
    pub(crate) records: PathBuf,
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Cables to other clusters, and how they are.
    Connections,
    /// Gateways of all clusters as they announce themselves.
    Endpoints,
    /// Gateway nodes of this cluster.
    Gateways,
    /// All of these.
    All,
}

impl What {
    /// Tells whether `part` was asked for.
    pub(crate) fn includes(self, part: Self) -> bool {
        self == part || self == Self::All
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    Json,
    Yaml,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn show_takes_a_part_a_store_and_a_format() {
        let args =
            Args::try_parse_from(["culvert", "show", "connections", "--records", "/r", "--output", "json"]).unwrap();
        let Command::Show(show) = args.command else { panic!("not show: {args:?}") };
        assert_eq!((show.what, show.output), (What::Connections, Output::Json));
        assert_eq!(show.records, PathBuf::from("/r"));
    }

    #[test]
    fn an_unknown_part_is_answered_with_those_there_are() {
        let error = Args::try_parse_from(["culvert", "show", "cables", "--records", "/r"]).unwrap_err();
        assert!(error.to_string().contains("connections, endpoints, gateways, all"), "{error}");
    }
}
