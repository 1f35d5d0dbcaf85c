//! `understudy adopt`: takes over a PostgreSQL that exists, where it is, and gives it back.
//!
//! At the machine itself, with the node's own file. What is found, planned and done lies in
//! `understudy_node::adopt`; here it is asked for, confirmed and printed.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use understudy_node::adopt::{self, Applied, Part, Plan, Severity, UndoOptions, Undone, Waiting};
use understudy_node::config::NodeConfig;
use understudy_types::Epoch;

use crate::operate::{CallError, parse_duration};
use crate::output::{self, Output};

const LONG: &str = "\
Takes over an existing PostgreSQL primary, and its stock streaming standby where there is one, in place: \
no data is moved or copied, and `undo` leads back to a stock PostgreSQL with everything that was written \
meanwhile. Every step is done at the machine that it is about, as the user that the daemon runs as.

  1. Anywhere:       understudy init --dir DIR --node name=north,…,pgdata=/var/lib/postgresql/15/main …
                     the node with the primary is the first one, or --initial-active
  2. Each data node: understudy adopt plan --config node.toml
                     until nothing is in the way
  3. Each data node: understudy adopt apply --config node.toml
                     prepares; the servers go on as before. A node without data needs nothing
  4. Every node:     start its daemon; the cluster is founded and waits for its primary
  5. The primary's:  understudy adopt apply --config node.toml
                     stops PostgreSQL; the daemon starts it again, and the standby follows in place
  6. Anywhere:       understudy status

Between 3 and 5 nothing is protected, and nothing is changed that a restart would notice.";

/// Take over an existing PostgreSQL in place, and give it back.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG)]
pub(crate) struct AdoptArgs {
    #[command(subcommand)]
    verb: AdoptVerb,
}

#[derive(Debug, clap::Subcommand)]
enum AdoptVerb {
    /// Say what would change, what stays and what is in the way; changes nothing. 0: possible, 3: not.
    Plan {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Prepare, and hand the primary over once the daemons wait for it.
    ///
    /// Copies of every file that changes, and a manifest, are in the node's data_dir, below adoption/.
    /// It can be run again whenever it was cut off.
    Apply {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        server: ServerArgs,
        /// Only print the plan.
        #[arg(long)]
        dry_run: bool,
        /// How long clients are waited for, once PostgreSQL was told to stop.
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Put everything back, with the daemon stopped: a stock PostgreSQL that starts with its former tools.
    ///
    /// The node that was active last becomes the primary again, with all that was written; any other
    /// stays a standby. First the passives, then the active.
    Undo {
        #[command(flatten)]
        common: Common,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// The daemons of all other nodes are stopped for good. Needed where PostgreSQL becomes writable:
        /// a daemon that runs elsewhere would make another node active beside it.
        #[arg(long)]
        others_stopped: bool,
        /// The newest epoch that any data node knows of (`--dry-run` says it at each). Needed where
        /// PostgreSQL becomes writable: a node that was away does not know that another one was promoted.
        #[arg(long, value_name = "EPOCH")]
        last_epoch: Option<Epoch>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// What every verb has.
#[derive(Debug, clap::Args)]
struct Common {
    /// The node's own TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How it is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How the server is asked.
#[derive(Debug, clap::Args)]
struct ServerArgs {
    /// A superuser that the server's OS user is let in as over the Unix socket; by default that user's
    /// own name, and postgres.
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// When something is in the way, or failed; the words say where it stands.
pub(crate) async fn run(args: &AdoptArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        AdoptVerb::Plan { common, server } => plan(common, server).await,
        AdoptVerb::Apply { common, server, dry_run: true, .. } => plan(common, server).await,
        AdoptVerb::Apply { common, server, dry_run: false, timeout, yes } => {
            apply(common, server, *timeout, *yes).await
        }
        AdoptVerb::Undo { common, dry_run, others_stopped, last_epoch, yes } => {
            let options = UndoOptions {
                dry_run: *dry_run,
                others_stopped: *others_stopped,
                last_epoch: *last_epoch,
            };
            undo(common, options, *yes).await
        }
    }
}

async fn plan(common: &Common, server: &ServerArgs) -> anyhow::Result<ExitCode> {
    let config = NodeConfig::load(&common.config)?;
    let plan = adopt::examine(&config, server.role.as_deref()).await?;
    let text = match common.output {
        Output::Text => render(&plan),
        Output::Json | Output::Yaml => common.output.data(&json_of(&plan)),
    };
    output::print(&text)?;
    Ok(if plan.is_possible() { ExitCode::SUCCESS } else { ExitCode::from(output::REFUSED) })
}

async fn apply(
    common: &Common,
    server: &ServerArgs,
    timeout: Duration,
    yes: bool,
) -> anyhow::Result<ExitCode> {
    let config = NodeConfig::load(&common.config)?;
    let plan = adopt::examine(&config, server.role.as_deref()).await?;
    if common.output == Output::Text {
        output::print(&render(&plan))?;
    }
    if plan.is_possible() {
        confirm(yes, "adopt it as planned")?;
    }
    let mut progress = |words: &str| eprintln!("{words}");
    let applied = adopt::apply(&config, server.role.as_deref(), timeout, &mut progress).await?;
    let (state, shut_out, next, code) = outcome(&applied);
    let text = match common.output {
        Output::Text => format!("\n{next}\n"),
        Output::Json | Output::Yaml => common.output.data(&json!({
            "version": 1, "plan": json_of(&plan), "state": state,
            "clients_shut_out_seconds": shut_out.map(|time| time.as_secs_f64()), "next": next,
        })),
    };
    output::print(&text)?;
    Ok(code)
}

fn outcome(applied: &Applied) -> (&'static str, Option<Duration>, String, ExitCode) {
    let done = ExitCode::SUCCESS;
    match applied {
        Applied::Prepared(waiting) => {
            let next = match waiting {
                Waiting::OnThePrimary => {
                    "Prepared; the standby goes on as before. Next: start this node's daemon, and \
                     when all run, `understudy adopt apply` at the primary."
                        .to_owned()
                }
                Waiting::NoDaemon(why) => format!(
                    "Prepared; PostgreSQL goes on as before. Next: start the daemon of every node, \
                     then run this again to hand PostgreSQL over. (This node's daemon: {why})"
                ),
                Waiting::Silent(names) => format!(
                    "Prepared; PostgreSQL goes on as before. {} gave no answer, and commits could wait \
                     for it. Next: start every node's daemon, then run this again.",
                    names.join(" and ")
                ),
                Waiting::NotFounded => "Prepared; PostgreSQL goes on as before. This node's daemon \
                                        hears no majority yet. Next: start the daemon of every node, \
                                        then run this again to hand PostgreSQL over."
                    .to_owned(),
            };
            ("prepared", None, next, done)
        }
        Applied::TakenOver { shut_out } => {
            let next = format!(
                "Taken over: clients are let in again after {:.1} s. Next: `understudy status`.",
                shut_out.as_secs_f64()
            );
            ("taken-over", Some(*shut_out), next, done)
        }
        Applied::Stopped { waited, log } => {
            let next = format!(
                "PostgreSQL was stopped, and the daemon has not let clients in after {:.0} s: \
                 `understudy status` and its log say why. It goes on trying; `understudy adopt undo` \
                 leads back. The end of PostgreSQL's log:\n{log}",
                waited.as_secs_f64()
            );
            ("stopped", Some(*waited), next, ExitCode::from(output::UNKNOWN))
        }
    }
}

async fn undo(common: &Common, options: UndoOptions, yes: bool) -> anyhow::Result<ExitCode> {
    let config = NodeConfig::load(&common.config)?;
    let mut progress = |words: &str| eprintln!("{words}");
    let first = UndoOptions { dry_run: true, ..options };
    let planned = adopt::undo(&config, first, &mut progress).await?;
    if options.dry_run {
        print_undone(common, &planned, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    if common.output == Output::Text {
        output::print(&steps_of(&planned))?;
    }
    confirm(yes, "put it back")?;
    let undone = adopt::undo(&config, options, &mut progress).await?;
    print_undone(common, &undone, true)?;
    Ok(ExitCode::SUCCESS)
}

/// Nobody is asked where nobody sits.
fn confirm(yes: bool, what: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let words = format!("--yes is missing: say it to {what}");
        return Err(CallError::Usage { words }.into());
    }
    eprint!("\n{}{}? [y/N] ", what[..1].to_uppercase(), &what[1..]);
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if matches!(line.trim(), "y" | "yes") {
        return Ok(());
    }
    let words = "nothing was done".to_owned();
    Err(CallError::Refused { words }.into())
}

fn json_of(plan: &Plan) -> Value {
    json!({ "version": 1, "possible": plan.is_possible(), "plan": plan })
}

fn word_of(part: Part) -> &'static str {
    match part {
        Part::Primary => "the primary that the cluster is founded on",
        Part::Standby => "a standby that goes on as a passive",
        Part::Copy => "nothing to adopt: the daemon copies the active",
    }
}

fn render(plan: &Plan) -> String {
    let mut text = format!(
        "node         {}\nPGDATA       {}\nadopt        {}\n",
        plan.node,
        plan.data_directory.display(),
        word_of(plan.part)
    );
    if let Some(server) = &plan.server {
        let started =
            server.debian.as_ref().map(|d| format!(", pg_ctlcluster {} {}", d.version, d.name));
        let unit = server.unit.as_ref().map(|unit| format!(", {unit}"));
        text += &format!(
            "server       PostgreSQL {}, pid {}, port {}{}{}\n\
             system id    {}, timeline {}\n\
             settings in  {}\n\
             clients      {} sessions now\n",
            server.version,
            server.pid,
            server.port,
            started.unwrap_or_default(),
            unit.unwrap_or_default(),
            server.system_identifier,
            server.timeline,
            server.config_file.display(),
            server.sessions,
        );
    }
    text += &format!("outage       {}\n", plan.outage);
    if !(plan.files.is_empty() && plan.others.is_empty()) {
        text += "\nWill change\n";
    }
    for file in &plan.files {
        text += &format!("  {}: {}\n    {}\n", file.path.display(), file.what, file.why);
    }
    for other in &plan.others {
        text += &format!("  {other}\n");
    }
    if !plan.settings.is_empty() {
        text += "\nSettings that are others while the daemon runs the server (no file of yours is changed)\n";
        let rows: Vec<[String; 4]> = plan
            .settings
            .iter()
            .map(|c| [format!("  {}", c.name), shown(&c.from), shown(&c.to), c.why.to_owned()])
            .collect();
        text += &(output::aligned(["  setting", "from", "to", "why"], &rows).join("\n") + "\n");
    }
    if !plan.kept.is_empty() {
        text += "\nStays as it is\n";
    }
    for kept in &plan.kept {
        text += &format!("  {}: {}\n", kept.what, shown(&kept.value));
    }
    text += "\nFound\n";
    for finding in &plan.findings {
        let word = match finding.severity {
            Severity::Blocker => "IN THE WAY",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        text += &format!("  {word}: {}\n    {}\n", finding.what, finding.remedy);
    }
    let verdict =
        if plan.is_possible() { "Nothing is in the way." } else { "It cannot be adopted so." };
    text + "\n" + verdict + "\n"
}

fn shown(value: &str) -> String {
    if value.is_empty() { "''".to_owned() } else { value.to_owned() }
}

fn steps_of(undone: &Undone) -> String {
    let mut text = String::new();
    if let Some(epoch) = undone.newest_epoch {
        text += &format!("The newest epoch that this node knows of is {epoch}.\n");
    }
    text += "To be done\n";
    for step in &undone.steps {
        text += &format!("  {step}\n");
    }
    text
}

fn print_undone(common: &Common, undone: &Undone, done: bool) -> io::Result<()> {
    let role = match undone.part {
        Part::Primary => "primary",
        Part::Standby | Part::Copy => "standby",
    };
    if common.output != Output::Text {
        let all = json!({
            "version": 1, "done": done, "role": role, "was_taken_over": undone.was_taken_over,
            "newest_epoch": undone.newest_epoch.map(|epoch| epoch.to_string()),
            "steps": undone.steps, "changed_since": undone.changed_since,
            "folder": undone.folder, "start": undone.start,
        });
        return output::print(&common.output.data(&all));
    }
    if !done {
        return output::print(&(steps_of(undone) + "\nNothing was changed.\n"));
    }
    let mut text = String::new();
    for path in &undone.changed_since {
        text += &format!(
            "{} was changed since; what it had is in {}\n",
            path.display(),
            undone.folder.display()
        );
    }
    text += &format!("Put back: a stock {role}. The copies are in {}.\n", undone.folder.display());
    if undone.was_taken_over {
        text += &format!("Next: {}\n", undone.start);
        text += "Its daemon is not to be started again: for another try make the nodes anew with \
                 `understudy init`.\n";
    }
    output::print(&text)
}
