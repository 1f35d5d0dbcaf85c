//! `understudy config check` and `config show`: what a node would make of its configuration file.
//!
//! Nothing is started, bound or made.

use std::path::PathBuf;
use std::process::ExitCode;

use understudy_node::config::NodeConfig;

/// Look at a node's configuration file.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigVerb {
    /// Say everything that is wrong with it, and with the programs of its hooks; exit 0 if nothing is.
    Check {
        /// The node's TOML file.
        file: PathBuf,
    },
    /// Print the configuration in force, defaults filled in.
    Show {
        /// The node's TOML file.
        file: PathBuf,
    },
}

/// Runs the verb.
///
/// # Errors
/// When the file cannot be loaded; the error lists everything that is wrong with it.
pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        ConfigVerb::Check { file } => {
            let config = NodeConfig::load(file)?;
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            let wrong = config.check_hooks();
            if !wrong.is_empty() {
                let list: String = wrong.iter().map(|wrong| format!("\n  {wrong}")).collect();
                anyhow::bail!("check the hooks of {}{list}", file.display());
            }
            println!("{}: good, node {}", file.display(), config.name);
            // Nothing in a file can be held against it, so it is said.
            println!(
                "the consensus needs a round trip below {:?} between its leader and one other node",
                config.timing.round_trip_max()
            );
        }
        ConfigVerb::Show { file } => print!("{}", NodeConfig::load(file)?.show()),
    }
    Ok(ExitCode::SUCCESS)
}
