//! The `understudy` binary: parses the command line and hands over to the verb.
//!
//! Data goes to stdout, everything else to stderr; exit codes are in `output`.

mod adopt;
mod config_command;
mod context;
mod debug;
mod demo;
mod events;
mod init;
mod log;
mod manual;
mod nodes;
mod operate;
mod orders;
mod output;
mod patroni;
mod receipt;
mod recover;
mod replay;
mod rpo;
mod status;
mod switchover;
mod validate;
mod wal;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser};

use context::ContextArgs;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused as unsafe or impossible now, \
4 cluster unreachable, 5 outcome unknown (look at `understudy status` before trying again).";

const FIRST_STEPS: &str = "\
First steps:
  understudy demo                            watch a cluster survive the loss of a site
  understudy init --dir DIR --node …         make certificates and configuration of a new cluster
  understudy run --config DIR/north/node.toml   run a node (on every machine)
  understudy --context DIR/contexts/operator.toml status";

/// Active-passive PostgreSQL replication and failover over two sites and a witness.
#[derive(Debug, Parser)]
#[command(
    name = "understudy",
    version,
    after_help = FIRST_STEPS,
    after_long_help = format!("{FIRST_STEPS}\n\n{EXIT_CODES}"),
    arg_required_else_help = true
)]
struct Arguments {
    #[command(flatten)]
    context: ContextArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Run a node: the daemon beside PostgreSQL, or a witness.
    Run(RunArgs),
    /// Make the certificates and configuration files of a new cluster.
    Init(init::InitArgs),
    /// Take over an existing PostgreSQL in place, and give it back.
    Adopt(adopt::AdoptArgs),
    /// Check or show a node's configuration file.
    Config(config_command::ConfigArgs),
    /// Watch a whole cluster on this machine lose a site and go on.
    Demo(demo::Args),
    /// Show the cluster: who is active, how far the others are behind, what would happen next.
    Status(status::StatusArgs),
    /// Show what happened: roles, epochs, operations, troubles, hooks, as every node saw it.
    Events(events::EventsArgs),
    /// List the nodes in patronictl's columns.
    List(patroni::ListArgs),
    /// The same, each passive below the active.
    Topology(patroni::ListArgs),
    /// List the promotions: timeline left, where, when, and who came next.
    History(patroni::ListArgs),
    /// Show what the cluster has agreed on.
    ShowConfig(ShowConfigArgs),
    /// Would a failover work now? What stands in its way, what it would cost, what to do.
    ///
    /// Every node is asked how it stands: versions, libraries, collations, settings, pg_hba.conf, disks,
    /// clocks, certificates, gaps in the WAL, lag, logical slots, who reaches whom, and whether load
    /// balancers ask every data node. Changes nothing. Exits 1 when a failover would not work.
    Validate(validate::ValidateArgs),
    /// Make another node active now.
    Failover(operate::FailoverArgs),
    /// Make another node active with the active's help, losing nothing.
    Switchover(switchover::SwitchoverArgs),
    /// Restart PostgreSQL at one node, or at all of them one after the other.
    Restart(orders::RestartArgs),
    /// Have PostgreSQL's settings read again from the nodes' files.
    Reload(orders::ReloadArgs),
    /// Make a passive's data afresh from the active.
    #[command(visible_alias = "reinit")]
    Reclone(orders::RecloneArgs),
    /// Show or turn the RPO dial: how much a loss of the active may cost.
    Rpo(rpo::RpoArgs),
    /// Stop automatic failover until a stated end.
    Pause(operate::PauseArgs),
    /// End a pause before its time.
    Resume(operate::ResumeArgs),
    /// Show what became of an order.
    Operation(operate::OperationArgs),
    /// Show what a former active had that the cluster has not: its loss receipts.
    Receipt(receipt::ReceiptArgs),
    /// Explain what a node decided and why, from its decision recorder's files.
    Replay(replay::ReplayArgs),
    /// When a majority will not come back: go on with one data node, and bring the others back to it.
    Recover(recover::RecoverArgs),
    /// Show which WAL is held where, verify it, and copy single files.
    Wal(wal::WalArgs),
    /// Show or change what the daemons log, while they run.
    Log(log::LogArgs),
    /// Collect what a bug report needs.
    Debug(debug::DebugArgs),
    /// Watch a lease in place of a daemon that cannot; started by the daemon, not by people.
    #[command(hide = true)]
    Guard(GuardArgs),
    /// Print the program's version.
    Version,
    /// Print what a shell needs to complete verbs and flags.
    Completions(manual::CompletionsArgs),
    /// Write the manual's pages.
    Man(manual::ManArgs),
}

/// What the daemon is told; everything else is in its configuration.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The node's TOML file (`understudy init` wrote one for each node).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// How the configuration is printed.
#[derive(Debug, clap::Args)]
struct ShowConfigArgs {
    /// How it is printed; text is YAML.
    #[arg(long, short, value_enum, default_value_t = output::Output::Text)]
    output: output::Output,
}

/// What the daemon tells its guardian at the start; the deadline comes over a socket.
#[derive(Debug, clap::Args)]
struct GuardArgs {
    /// Where its sockets, lock and log are.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// PGDATA.
    #[arg(long, value_name = "DIR")]
    data_directory: PathBuf,
    /// Who PostgreSQL runs as.
    #[arg(long, value_name = "UID")]
    owner_uid: u32,
    /// That user's group.
    #[arg(long, value_name = "GID")]
    owner_gid: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => output::fail(&error),
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let context = &arguments.context;
    match arguments.verb {
        Verb::Run(args) => {
            understudy_node::daemon::run(&args.config)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Init(args) => init::run(&args),
        Verb::Adopt(args) => client(adopt::run(&args)),
        Verb::Config(args) => config_command::run(&args),
        Verb::Demo(args) => {
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            runtime.block_on(demo::run(args))
        }
        Verb::Status(args) => client(status::run(&context.load()?, &args)),
        Verb::Events(args) => client(events::run(&context.load()?, &args)),
        Verb::List(args) => client(patroni::list(&context.load()?, &args, false)),
        Verb::Topology(args) => client(patroni::list(&context.load()?, &args, true)),
        Verb::History(args) => client(patroni::history(&context.load()?, &args)),
        Verb::ShowConfig(args) => client(patroni::show_config(&context.load()?, args.output)),
        Verb::Completions(args) => manual::completions(Arguments::command(), &args),
        Verb::Man(args) => manual::man(Arguments::command(), &args),
        Verb::Validate(args) => client(validate::run(&context.load()?, &args)),
        Verb::Failover(args) => client(operate::failover(&context.load()?, &args)),
        Verb::Switchover(args) => client(switchover::run(&context.load()?, &args)),
        Verb::Restart(args) => client(orders::restart(&context.load()?, &args)),
        Verb::Reload(args) => client(orders::reload(&context.load()?, &args)),
        Verb::Reclone(args) => client(orders::reclone(&context.load()?, &args)),
        Verb::Rpo(args) => client(rpo::run(&context.load()?, &args)),
        Verb::Pause(args) => client(operate::pause(&context.load()?, &args)),
        Verb::Resume(args) => client(operate::resume(&context.load()?, &args)),
        Verb::Operation(args) => client(operate::operation(&context.load()?, &args)),
        Verb::Receipt(args) => receipt::run(context, &args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Recover(args) => client(recover::run(&args)),
        Verb::Wal(args) => wal::run(context, &args),
        Verb::Log(args) => client(log::run(&context.load()?, &args)),
        Verb::Debug(args) => client(debug::run(&context.load()?, &args)),
        Verb::Guard(args) => {
            understudy_node::guard::watch(&understudy_node::guard::WatchOptions {
                dir: args.dir,
                data_dir: args.data_directory,
                owner: (args.owner_uid, args.owner_gid),
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Version => {
            output::print(&format!("understudy {}\n", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn client(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_reads_as_it_is_documented() {
        for line in [
            "understudy run --config n.toml",
            "understudy --context c.toml status --watch --output json",
            "understudy status --context c.toml",
            "understudy events",
            "understudy events --follow --kind role-change --kind promotion --output json",
            "understudy events --since 10m --limit 5 --node north --node south -o yaml",
            "understudy list",
            "understudy list -f tsv -w 5",
            "understudy list --output json",
            "understudy topology -W",
            "understudy history --format yaml",
            "understudy show-config -o json",
            "understudy status --output yaml",
            "understudy completions bash",
            "understudy man --dir /m",
            "understudy validate --node north --strict --output json",
            "understudy failover --to south --reason storm --yes --wait",
            "understudy failover --to south --accept-loss 14s --epoch 3 --reason storm --yes",
            "understudy failover --accept-loss any --accept-loss-bytes 9 --epoch 1.3 --reason storm",
            "understudy rpo show --output json",
            "understudy rpo set zero --reason audit --wait",
            "understudy rpo set bounded --ceiling 1h --on-passive-loss degrade --reason x --dry-run",
            "understudy rpo set --promote-without-lease-wait true --reason x",
            "understudy pause --for 10m --reason upgrade",
            "understudy switchover --reason upgrade",
            "understudy switchover --to south --pause-budget 10s --epoch 3 --wait --reason upgrade",
            "understudy switchover --dry-run",
            "understudy resume",
            "understudy operation 7 --output json",
            "understudy receipt list",
            "understudy receipt list --data-dir /d --output json",
            "understudy receipt show --node north",
            "understudy receipt show epoch-2-1 --node north --output json",
            "understudy receipt transactions epoch-2-1 --data-dir /d",
            "understudy restart --reason x",
            "understudy restart north south --pending --role standby --reason x --wait",
            "understudy restart -r leader --dry-run --output json",
            "understudy reload south --reason x --epoch 3",
            "understudy reload --dry-run",
            "understudy reinit south --yes --reason x --wait --timeout 30m",
            "understudy reclone south --dry-run --output yaml",
            "understudy switchover --leader north --candidate south --scheduled 23:30 --reason x",
            "understudy switchover --scheduled 2026-12-01T03:00:00Z --reason x",
            "understudy switchover --scheduled +10m --reason x",
            "understudy switchover --cancel --reason x",
            "understudy wal get --journal /j 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "understudy wal status --output json",
            "understudy wal list --node south --timeline 2 --from 0/3000000 --to 0/5000000",
            "understudy wal list --journal /d/wal --output json",
            "understudy wal verify",
            "understudy wal verify --node north --node south --from 1/0 --rate 128MiB --output json",
            "understudy wal verify --journal /d/wal --to 0/5000000",
            "understudy log level",
            "understudy log level info,understudy_core=debug --for 10m --node north --output json",
            "understudy log level --reset",
            "understudy debug bundle",
            "understudy debug bundle --out b.tar.gz --trace-size 0 --output json",
            "understudy replay /d/trace",
            "understudy replay t.trace --from 2026-01-31T12:00:00Z --until 99 --only changes",
            "understudy replay t.trace --only decisions --output json",
            "understudy recover --sole-survivor --config n.toml --dry-run",
            "understudy recover --sole-survivor --config n.toml --cluster-name c --accept-loss none --reason x",
            "understudy recover --rejoin --config n.toml --cluster-name c --output json",
            "understudy adopt plan --config n.toml --role admin --output json",
            "understudy adopt apply --config n.toml --dry-run",
            "understudy adopt apply --config n.toml --yes --timeout 2m",
            "understudy adopt undo --config n.toml --others-stopped --last-epoch 3 --yes -o yaml",
            "understudy config check n.toml",
            "understudy demo --plain",
            "understudy guard --dir /g --data-directory /d --owner-uid 1 --owner-gid 2",
            "understudy version",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_must_be_said_cannot_be_left_out() {
        for line in [
            "understudy",
            "understudy run",
            "understudy failover",
            "understudy switchover",
            "understudy switchover --reason upgrade --pause-budget 10",
            "understudy switchover --reason upgrade --pause-budget 10m",
            "understudy switchover --reason upgrade --epoch three",
            "understudy restart",
            "understudy restart north --role king --reason x",
            "understudy reload south --reason x --force",
            "understudy reclone --reason x",
            "understudy switchover --scheduled noon --reason x",
            "understudy switchover --scheduled +10 --reason x",
            "understudy switchover --cancel",
            "understudy switchover --cancel --to south --reason x",
            "understudy switchover --scheduled 23:30 --dry-run",
            "understudy pause --reason upgrade",
            "understudy pause --for 8d --reason upgrade",
            "understudy pause --for ten --reason upgrade",
            "understudy failover --force --reason x",
            "understudy failover --accept-loss 5m --reason x",
            "understudy failover --accept-loss most --epoch 3 --reason x",
            "understudy rpo set zero",
            "understudy rpo set some --reason x",
            "understudy rpo set bounded --on-passive-loss panic --reason x",
            "understudy operation seven",
            "understudy events --kind role",
            "understudy events --since 10",
            "understudy log",
            "understudy log level --for 10m",
            "understudy log level debug --reset",
            "understudy log level debgu",
            "understudy debug bundle --trace-size 16",
            "understudy list --watch 0",
            "understudy completions cmd",
            "understudy replay",
            "understudy replay t.trace --from noon",
            "understudy adopt",
            "understudy adopt plan",
            "understudy adopt apply --config n.toml --timeout soon",
            "understudy receipt",
            "understudy receipt show --node north --data-dir /d",
            "understudy wal get --journal /j 000000010000000000000001",
            "understudy wal",
            "understudy wal list --timeline 0",
            "understudy wal list --journal /d/wal --node south",
            "understudy wal verify --journal /d/wal --node south",
            "understudy wal verify --from 3000000",
            "understudy wal verify --rate 64",
            "understudy wal verify --rate 512KiB",
            "understudy wal verify --rate 8GiB",
            "understudy recover --config n.toml",
            "understudy recover --sole-survivor --rejoin --config n.toml",
            "understudy recover --sole-survivor --config n.toml --accept-loss most --reason x",
        ] {
            assert!(parse(line).is_err(), "{line} was accepted");
        }
    }
}
