//! Decides where log lines go and how they look: standard error, as text for people or JSON for machines.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Why logging could not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoggingError {
    #[error(
        "log level {filter:?} is none: use off, error, warn, info, debug, trace or directives such as \
         info,culvert_gateway=debug"
    )]
    Filter { filter: String },
    #[error("logging is started already: start it once a process")]
    Started,
}

/// Sends events that pass `filter` (a level, or directives of tracing's `EnvFilter`) to standard error.
///
/// # Errors
///
/// [`LoggingError`] if the filter is none, or on a second call.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LoggingError> {
    let filter = parse(filter)?;
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| LoggingError::Started)
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    let error = || LoggingError::Filter { filter: filter.to_owned() };
    // EnvFilter takes an unknown bare word for the name of a crate, and a misspelt level would silence everything.
    let bare = !filter.contains(['=', ',', '[', ':']);
    if filter.is_empty() || (bare && filter.parse::<LevelFilter>().is_err()) {
        return Err(error());
    }
    EnvFilter::try_new(filter).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_filters() {
        for filter in ["info", "DEBUG", "off", "info,culvert_gateway=debug", "culvert_broker::sync=trace"] {
            assert!(parse(filter).is_ok(), "{filter}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused_by_name() {
        for filter in ["", "inof", "verbose", "culvert_gateway=loud"] {
            let error = parse(filter).expect_err("no filter");
            assert!(error.to_string().contains(&format!("{filter:?}")), "{error}");
        }
    }
}
