//! Starts Globalnet: `culvert-globalnet --help` lists what it takes.

use std::process::ExitCode;

use clap::Parser;
use culvert_globalnet::config::{Args, Config};
use culvert_runtime::logging;
use culvert_runtime::shutdown::Shutdown;

// One thread: a network namespace belongs to a thread, and there is little to do.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match start(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may be what failed.
            eprintln!("culvert-globalnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    logging::init(args.node.log_format, &args.node.log_level)?;
    let (uninstall, who_called) = (args.node.uninstall, args.who_called);
    let config = Config::try_from(args)?;
    if uninstall {
        return culvert_globalnet::uninstall().await;
    }
    if let Some(seen) = who_called {
        print!("{}", culvert_globalnet::who_called(&config, seen).await?);
        return Ok(());
    }
    culvert_globalnet::run(config, Shutdown::install()?).await
}
