//! Starts the gateway: `culvert-gateway --help` lists what it takes.

use std::process::ExitCode;

use clap::Parser;
use culvert_gateway::config::{Args, Config};
use culvert_runtime::logging;
use culvert_runtime::shutdown::Shutdown;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match start(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may be what failed.
            eprintln!("culvert-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    logging::init(args.node.log_format, &args.node.log_level)?;
    let uninstall = args.node.uninstall;
    let config = Config::try_from(args)?;
    if uninstall {
        return culvert_gateway::uninstall(&config).await;
    }
    culvert_gateway::run(config, Shutdown::install()?).await
}
