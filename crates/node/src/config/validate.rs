//! From text to types, collecting everything that is wrong on the way.
//!
//! Looks at nothing but the text: whether files exist and ports are free is found out by who uses
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_core::node::Damping;
use understudy_core::{ClusterConfig, OnPassiveLoss, OnSoleSurvivor, Timing};
use understudy_types::{DurabilityMode, NodeId, NodeKind, NodeName, Region};

use super::raw::{
    Raw, RawDurability, RawHttp, RawListen, RawLog, RawMember, RawPostgres, RawTiming, RawTrace,
    RawWal,
};
use super::{
    AUTO, ConfigError, HttpConfig, HttpTls, LogConfig, LogFormat, Member, NodeConfig,
    PostgresConfig, TlsFiles, WalConfig, duration, hooks, parameters, size, split_host_port,
};
use crate::telemetry;

/// The longest path of a Unix socket (`sun_path` of unix(7), less its terminator).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The relay's socket, `run/.s.PGSQL.7432`; every port has at most five digits.
const PORT_DIGITS_MAX: usize = 5;
/// As many as Raft and `status` are meant for.
const MEMBERS_MAX: usize = 9;
/// As many data nodes as a source feeds: each has a slot and a stream of its own.
const WAL_NODES_MAX: usize = 5;
/// k of n beside the active.
const DURABLE_COPIES_MAX: u32 = 4;
/// What the decision recorder may occupy unless the file says otherwise.
const TRACE_DEFAULT: &str = "64MiB";
/// With less, a file of the ring would hold little more than the snapshot it begins with.
const TRACE_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// What is kept of WAL that nobody needs unless the file says otherwise.
const WAL_KEEP_DEFAULT: u64 = 1 << 30;
/// Four of the largest segments that are common.
const WAL_MAX_MIN: u64 = 256 << 20;

#[derive(Default)]
pub(super) struct Findings {
    errors: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Findings {
    pub(super) fn error(
        &mut self,
        field: impl Into<String>,
        value: impl Display,
        remedy: impl Into<String>,
    ) {
        let (field, value, remedy) = (field.into(), value.to_string(), remedy.into());
        self.errors.push(ConfigError { field, value, remedy });
    }

    /// Parses text whose error says what was expected.
    fn parse<T>(&mut self, field: impl Into<String>, text: &str) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: Display,
    {
        let result = text.parse::<T>();
        result.map_err(|error| self.error(field, quoted(text), error.to_string())).ok()
    }

    fn choice<T: Copy>(&mut self, field: &str, text: &str, choices: &[(&str, T)]) -> Option<T> {
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.error(field, quoted(text), format!("expected one of {}", names.join(", ")));
        }
        found
    }

    /// Sets `target` if the file says something.
    pub(super) fn duration(&mut self, field: &str, text: Option<&str>, target: &mut Duration) {
        let Some(text) = text else { return };
        match duration::parse(text) {
            Some(value) => *target = value,
            None => self.error(field, quoted(text), duration::EXPECTED),
        }
    }

    fn kind(&mut self, field: &str, text: &str) -> Option<NodeKind> {
        let kinds = [NodeKind::Data, NodeKind::Witness, NodeKind::Journal];
        self.choice(field, text, &kinds.map(|kind| (kind.as_str(), kind)))
    }

    fn path(&mut self, field: &str, base: &Path, path: PathBuf) -> PathBuf {
        // Some of these end up on PostgreSQL's command line and in its settings.
        let text = path.to_str().unwrap_or("\n");
        if text.is_empty() || text.contains(['\n', '"', '\'', ',']) {
            let remedy = "expected a path in UTF-8 without quotes, commas and line ends";
            self.error(field, quoted(&path.to_string_lossy()), remedy);
        }
        base.join(path)
    }
}

pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// The configuration, or everything that is wrong with it.
pub(super) fn validate(raw: Raw, base: &Path) -> Result<NodeConfig, Vec<ConfigError>> {
    let mut found = Findings::default();
    let cluster = raw.cluster.parse().map_err(|_| {
        let remedy = "expected the cluster's UUID as `understudy init` printed it";
        found.error("cluster", quoted(&raw.cluster), remedy);
    });
    let name: Option<NodeName> = found.parse("name", &raw.name);
    let site = found.parse("site", &raw.site);
    let kind = found.kind("kind", &raw.kind);
    let data_dir = found.path("data_dir", base, raw.data_dir);
    let tls = TlsFiles {
        ca: found.path("tls.ca", base, raw.tls.ca),
        certificate: found.path("tls.certificate", base, raw.tls.certificate),
        key: found.path("tls.key", base, raw.tls.key),
    };
    let listen = listen(&mut found, &raw.listen);
    let members = members(&mut found, &raw.members);
    let http_files = http_tls(&mut found, base, &raw.http);
    let own = own_entry(&mut found, &members, &raw.name, &raw.site, &raw.kind);
    check_members(&mut found, &members);
    let allowed_regions = allowed_regions(&mut found, &raw.allowed_regions, &members);
    let initial_active = initial_active(&mut found, &members, raw.initial_active.as_deref());
    let host = own.as_ref().and_then(|own| split_host_port(&own.address)).map(|(host, _)| host);
    let http = http(&mut found, &raw.http, listen, host, http_files);
    let postgres = match (kind, raw.postgres) {
        (Some(NodeKind::Data), Some(postgres)) => {
            Some(check_postgres(&mut found, base, &data_dir, host.unwrap_or("localhost"), postgres))
        }
        (Some(NodeKind::Data), None) => {
            found.error("postgres", "missing", "a data node needs [postgres] data_directory");
            None
        }
        (Some(NodeKind::Witness), Some(_)) => {
            found.error("postgres", "present", "a witness keeps no data: remove the section");
            None
        }
        (Some(NodeKind::Journal), Some(_)) => {
            let remedy = "a journal keeps WAL without a PostgreSQL: remove the section";
            found.error("postgres", "present", remedy);
            None
        }
        (Some(NodeKind::Witness | NodeKind::Journal) | None, _) => None,
    };
    let relay = data_dir.join("run").join(".s.PGSQL.").as_os_str().len() + PORT_DIGITS_MAX;
    if relay > SOCKET_PATH_BYTES_MAX {
        let over = relay - SOCKET_PATH_BYTES_MAX;
        let remedy = format!(
            "its sockets run/.s.PGSQL.NNNNN would have paths of {relay} bytes, Linux allows \
             {SOCKET_PATH_BYTES_MAX}: choose a directory that is {over} bytes shorter"
        );
        found.error("data_dir", quoted(&data_dir.to_string_lossy()), remedy);
    }
    let timing = timing(&mut found, &raw.timing);
    let damping = damping(&mut found, &raw.timing);
    let durability = durability(&mut found, &raw.durability, timing.ttl);
    let journal = members.iter().find(|member| member.kind == NodeKind::Journal);
    if let Some(journal) = journal.filter(|_| durability.durable_copies == 0) {
        found.warnings.push(format!(
            "every commit waits for {} as well as for each passive, because durability.durable_copies is 0; \
             with 1 it waits for whichever is first",
            journal.name
        ));
    }
    let log = log(&mut found, &raw.log);
    let trace_bytes_max = trace(&mut found, &raw.trace);
    let wal = wal(&mut found, &raw.wal);
    let hooks = hooks::validate(&mut found, raw.hooks);
    if !found.errors.is_empty() {
        return Err(found.errors);
    }
    let complete = || -> Option<NodeConfig> {
        let (listen_grpc, listen_http) = listen?;
        Some(NodeConfig {
            cluster: cluster.ok()?,
            name: name?,
            id: own?.id,
            site: site?,
            kind: kind?,
            data_dir,
            listen_grpc,
            listen_http,
            http: http?,
            tls,
            members,
            initial_active: initial_active?,
            allowed_regions,
            postgres,
            durability,
            timing,
            damping,
            log,
            trace_bytes_max,
            wal,
            hooks,
            warnings: found.warnings,
        })
    };
    Ok(complete().expect("whatever is None has left an error behind"))
}

fn listen(found: &mut Findings, raw: &RawListen) -> Option<(SocketAddr, SocketAddr)> {
    let mut parse = |field: &str, text: &str| -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            let remedy = "expected an IP address and a port, such as \"10.0.1.5:7400\"";
            found.error(field, quoted(text), remedy);
        }
        address
    };
    let grpc = parse("listen.grpc", raw.grpc.as_deref().unwrap_or("0.0.0.0:7400"));
    let http = match &raw.http {
        Some(text) => parse("listen.http", text),
        None => grpc.map(|grpc| SocketAddr::new(grpc.ip(), 7480)),
    };
    let (grpc, http) = (grpc?, http?);
    if grpc == http && grpc.port() != 0 {
        found.error("listen.http", quoted(&http.to_string()), "must differ from listen.grpc");
    }
    Some((grpc, http))
}

/// The door's certificate and key, which need each other.
fn http_tls(found: &mut Findings, base: &Path, raw: &RawHttp) -> Option<HttpTls> {
    match (raw.certificate.clone(), raw.key.clone()) {
        (Some(certificate), Some(key)) => Some(HttpTls {
            certificate: found.path("http.certificate", base, certificate),
            key: found.path("http.key", base, key),
        }),
        (None, None) => None,
        (certificate, _) => {
            let (missing, there) = match certificate {
                Some(_) => ("http.key", "http.certificate"),
                None => ("http.certificate", "http.key"),
            };
            let remedy = format!("{there} is set: name both, or neither for plain HTTP");
            found.error(missing, "missing", remedy);
            None
        }
    }
}

fn http(
    found: &mut Findings,
    raw: &RawHttp,
    listen: Option<(SocketAddr, SocketAddr)>,
    own_host: Option<&str>,
    tls: Option<HttpTls>,
) -> Option<HttpConfig> {
    let (_, http) = listen?;
    let advertise = match &raw.advertise {
        Some(text) if split_host_port(text).is_some() => text.clone(),
        Some(text) => {
            let remedy = "expected a host and a port, such as \"north.example.org:7480\"";
            found.error("http.advertise", quoted(text), remedy);
            return None;
        }
        None => match own_host.filter(|_| http.ip().is_unspecified()) {
            Some(host) => format!("{host}:{}", http.port()),
            None => http.to_string(),
        },
    };
    let patroni_metrics = raw.patroni_metrics.unwrap_or(false);
    Some(HttpConfig { advertise, tls, patroni_metrics })
}

fn members(found: &mut Findings, raw: &[RawMember]) -> Vec<Member> {
    if raw.is_empty() || raw.len() > MEMBERS_MAX {
        let remedy = format!("expected the founding members, 1 to {MEMBERS_MAX} of them");
        found.error("members", format!("{} entries", raw.len()), remedy);
    }
    let mut members = Vec::new();
    for (index, member) in raw.iter().enumerate() {
        let field = |name: &str| format!("members[{index}].{name}");
        let name = found.parse(field("name"), &member.name);
        let site = found.parse(field("site"), &member.site);
        let kind = found.kind(&field("kind"), &member.kind);
        let region = member.region.as_ref();
        let region = region.and_then(|region| found.parse(field("region"), region));
        if member.id == 0 {
            found.error(field("id"), member.id, "expected a number from 1");
        }
        if split_host_port(&member.address).is_none() {
            let remedy = "expected host:port, such as \"10.0.1.5:7400\"";
            found.error(field("address"), quoted(&member.address), remedy);
        }
        if let (Some(name), Some(site), Some(kind)) = (name, site, kind) {
            let (id, address) = (NodeId(member.id), member.address.clone());
            members.push(Member { name, id, site, region, kind, address });
        }
    }
    let mut seen = BTreeMap::new();
    for (index, member) in raw.iter().enumerate() {
        let values = [
            ("name", quoted(&member.name)),
            ("id", member.id.to_string()),
            ("address", quoted(&member.address)),
        ];
        for (field, value) in values {
            if let Some(first) = seen.insert((field, value.clone()), index) {
                let remedy = format!("members[{first}] has it already; each needs its own");
                found.error(format!("members[{index}].{field}"), value, remedy);
            }
        }
    }
    members
}

/// Where data may be; every data node has to be there, this one too.
fn allowed_regions(found: &mut Findings, raw: &[String], members: &[Member]) -> BTreeSet<Region> {
    let each = raw.iter().enumerate();
    let allowed: BTreeSet<Region> = each
        .filter_map(|(index, text)| found.parse(format!("allowed_regions[{index}]"), text))
        .collect();
    for (index, member) in members.iter().enumerate() {
        if !member.kind.keeps_wal() || member.check_may_have_data(&allowed).is_ok() {
            continue;
        }
        let names: Vec<&str> = allowed.iter().map(Region::as_str).collect();
        let said = member.region.as_ref().map_or("absent".to_owned(), |r| quoted(r.as_str()));
        let remedy = format!(
            "a {} node has to be in one of allowed_regions, {}; make {} a witness or allow its region",
            member.kind.as_str(),
            names.join(", "),
            member.name
        );
        found.error(format!("members[{index}].region"), said, remedy);
    }
    allowed
}

/// Which founding lists cannot work, and which do not do what one would expect of them.
fn check_members(found: &mut Findings, members: &[Member]) {
    if members.is_empty() {
        return;
    }
    let data = members.iter().filter(|member| member.kind == NodeKind::Data).count();
    match data {
        0 => found.error("members", "no data node", "at least one must have kind \"data\""),
        1 => found.warnings.push("there is one data node: nothing can take over from it".into()),
        _ => {}
    }
    let keep_wal = members.iter().filter(|member| member.kind.keeps_wal()).count();
    if keep_wal > WAL_NODES_MAX {
        let value = format!("{keep_wal} data nodes and journals");
        let remedy = format!("at most {WAL_NODES_MAX} are supported; make the others witnesses");
        found.error("members", value, remedy);
    }
    let mut sites: BTreeMap<_, usize> = BTreeMap::new();
    for member in members {
        *sites.entry(&member.site).or_default() += 1;
    }
    let majority = members.len() / 2 + 1;
    if members.len() < 3 || sites.len() < 3 {
        found.warnings.push(format!(
            "{} voters at {} sites: two places alone cannot fail over automatically and safely; \
             add a witness at a third place",
            members.len(),
            sites.len()
        ));
    }
    for (site, voters) in sites {
        if members.len() >= 3 && members.len() - voters < majority {
            found.warnings.push(format!(
                "site {site} has {voters} of {} voters: when it is lost, the others are no majority",
                members.len()
            ));
        }
    }
}

fn own_entry(
    found: &mut Findings,
    members: &[Member],
    name: &str,
    site: &str,
    kind: &str,
) -> Option<Member> {
    let Some(own) = members.iter().find(|member| member.name.as_str() == name) else {
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        let remedy = format!("must be one of the members: {}", names.join(", "));
        found.error("name", quoted(name), remedy);
        return None;
    };
    if own.site.as_str() != site {
        let remedy = format!("this node's entry in members says {:?}", own.site.as_str());
        found.error("site", quoted(site), remedy);
    }
    let own_kind = own.kind.as_str();
    if own_kind != kind {
        let remedy = format!("this node's entry in members says {own_kind:?}");
        found.error("kind", quoted(kind), remedy);
    }
    Some(own.clone())
}

fn initial_active(
    found: &mut Findings,
    members: &[Member],
    name: Option<&str>,
) -> Option<NodeName> {
    let data: BTreeSet<&NodeName> = members
        .iter()
        .filter(|member| member.kind == NodeKind::Data)
        .map(|member| &member.name)
        .collect();
    let Some(name) = name else {
        let first = members.iter().find(|member| member.kind == NodeKind::Data);
        return first.map(|member| member.name.clone());
    };
    let chosen = data.iter().find(|data| data.as_str() == name);
    if chosen.is_none() {
        let names: Vec<&str> = data.iter().map(|name| name.as_str()).collect();
        let remedy = format!("must be a data node: {}", names.join(", "));
        found.error("initial_active", quoted(name), remedy);
    }
    chosen.map(|name| (*name).clone())
}

fn check_postgres(
    found: &mut Findings,
    base: &Path,
    data_dir: &Path,
    host: &str,
    raw: RawPostgres,
) -> PostgresConfig {
    let data_directory = found.path("postgres.data_directory", base, raw.data_directory);
    let mut config = PostgresConfig::with_defaults(data_dir, data_directory, host);
    if data_dir.starts_with(&config.data_directory) {
        let remedy = "data_dir lies in it: a rewind or clone would destroy the node's own state; \
                      choose another";
        found.error(
            "postgres.data_directory",
            quoted(&config.data_directory.to_string_lossy()),
            remedy,
        );
    }
    let own = ["raft", "wal", "divergent", "run", "tls", "trace"];
    if own.iter().any(|own| config.data_directory.starts_with(data_dir.join(own))) {
        found.error(
            "postgres.data_directory",
            quoted(&config.data_directory.to_string_lossy()),
            "the node keeps its own files there; choose another, such as <data_dir>/pgdata",
        );
    }
    if let Some(port) = raw.port {
        match u16::try_from(port) {
            Ok(port) if port > 0 => config.port = port,
            _ => found.error("postgres.port", port, "expected 1 to 65535"),
        }
    }
    config.bin_dir = raw.bin_dir.map(|path| found.path("postgres.bin_dir", base, path));
    config.listen_addresses = raw.listen_addresses.unwrap_or(config.listen_addresses);
    config.os_user = raw.os_user.unwrap_or(config.os_user);
    config.advertise = raw.advertise.unwrap_or(format!("{host}:{}", config.port));
    if split_host_port(&config.advertise).is_none() {
        let remedy = "expected host:port as clients reach this PostgreSQL";
        found.error("postgres.advertise", quoted(&config.advertise), remedy);
    }
    if config.os_user.is_empty() || config.os_user == "root" {
        let remedy = "expected a user that is not root: PostgreSQL refuses to run as root";
        found.error("postgres.os_user", quoted(&config.os_user), remedy);
    }
    if let Some(path) = raw.socket_directory {
        config.socket_directory = found.path("postgres.socket_directory", base, path);
    }
    config.guardian = raw.guardian.unwrap_or(config.guardian);
    let socket = config.socket_directory.join(format!(".s.PGSQL.{}", config.port));
    let bytes = socket.as_os_str().len();
    // The default directory lies in data_dir, which has its own check.
    if bytes > SOCKET_PATH_BYTES_MAX && config.socket_directory != data_dir.join("run") {
        let remedy = format!(
            "{socket:?} has {bytes} bytes, Linux allows {SOCKET_PATH_BYTES_MAX}: choose a shorter \
             directory"
        );
        let value = quoted(&config.socket_directory.to_string_lossy());
        found.error("postgres.socket_directory", value, remedy);
    }
    config.parameters = user_parameters(found, &raw.parameters);
    config
}

fn user_parameters(
    found: &mut Findings,
    raw: &BTreeMap<String, toml::Value>,
) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    for (name, value) in raw {
        let field = format!("postgres.parameters.{name}");
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(on) => (if *on { "on" } else { "off" }).to_owned(),
            toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                // TOML reads an unquoted a.b = 1 as a table.
                let remedy = "expected text, a number or true/false; quote a name with a dot";
                found.error(field, value, remedy);
                continue;
            }
        };
        if text.contains(['\0', '\n']) {
            found.error(field, value, "expected one line");
        } else if let Some(reason) = parameters::refusal(name, &text) {
            found.error(field, value, reason);
        } else if parameters.insert(name.to_ascii_lowercase(), text).is_some() {
            found.error(field, value, "it is set twice: case does not matter to PostgreSQL");
        }
    }
    parameters
}

/// k of n: whether so many passives are there is not known from here, members may be added.
fn durable_copies(found: &mut Findings, copies: i64, before: u32) -> u32 {
    match u32::try_from(copies) {
        Ok(copies) if copies <= DURABLE_COPIES_MAX => copies,
        Ok(_) | Err(_) => {
            let remedy = format!(
                "expected 0 (all of those who are waited for) to {DURABLE_COPIES_MAX} copies"
            );
            found.error("durability.durable_copies", copies.to_string(), remedy);
            before
        }
    }
}

fn durability(found: &mut Findings, raw: &RawDurability, ttl: Duration) -> ClusterConfig {
    let mut config = ClusterConfig::default();
    let modes = [
        ("zero", DurabilityMode::Zero),
        ("bounded", DurabilityMode::Bounded),
        ("best-effort", DurabilityMode::BestEffort),
    ];
    if let Some(text) = &raw.mode {
        config.mode = found.choice("durability.mode", text, &modes).unwrap_or(config.mode);
    }
    found.duration("durability.rpo", raw.rpo.as_deref(), &mut config.rpo);
    found.duration(
        "durability.degrade_after",
        raw.degrade_after.as_deref(),
        &mut config.degrade_after,
    );
    let losses = [("stall", OnPassiveLoss::Stall), ("degrade", OnPassiveLoss::Degrade)];
    if let Some(text) = &raw.on_passive_loss {
        let choice = found.choice("durability.on_passive_loss", text, &losses);
        config.on_passive_loss = choice.unwrap_or(config.on_passive_loss);
    }
    let survivors = [("open", OnSoleSurvivor::Open), ("stall", OnSoleSurvivor::Stall)];
    if let Some(text) = &raw.on_sole_survivor {
        let choice = found.choice("durability.on_sole_survivor", text, &survivors);
        config.on_sole_survivor = choice.unwrap_or(config.on_sole_survivor);
    }
    if let Some(copies) = raw.durable_copies {
        config.durable_copies = durable_copies(found, copies, config.durable_copies);
    }
    config.promote_without_lease_wait =
        raw.promote_without_lease_wait.unwrap_or(config.promote_without_lease_wait);
    if config.mode == DurabilityMode::Bounded && config.rpo < ttl * 2 {
        let remedy = format!(
            "rpo >= 2 × lease_ttl does not hold: {} < 2 × {}",
            duration::format(config.rpo),
            duration::format(ttl)
        );
        found.error("durability.rpo", quoted(&duration::format(config.rpo)), remedy);
    }
    config
}

fn timing(found: &mut Findings, raw: &RawTiming) -> Timing {
    let before = found.errors.len();
    let profiles = [("default", Timing::DEFAULT), ("fast", Timing::FAST)];
    let profile = raw.profile.as_deref().unwrap_or("default");
    let mut timing = found.choice("timing.profile", profile, &profiles).unwrap_or_default();
    let mut set = |field: &str, text: &Option<String>, target: &mut Duration| {
        found.duration(field, text.as_deref(), target);
    };
    set("timing.heartbeat", &raw.heartbeat, &mut timing.heartbeat);
    set("timing.election_min", &raw.election_min, &mut timing.election_min);
    set("timing.election_max", &raw.election_max, &mut timing.election_max);
    set("timing.lease_ttl", &raw.lease_ttl, &mut timing.ttl);
    set("timing.renew_interval", &raw.renew_interval, &mut timing.renew);
    set("timing.margin", &raw.margin, &mut timing.margin);
    if let Some(bound) = raw.drift_bound {
        if (0.0..=0.1).contains(&bound) {
            // Rounded up, so that what is in force is never less than what was written.
            timing.drift_ppm = (bound * 1e6).ceil() as u32;
        } else {
            found.error("timing.drift_bound", bound, "expected a ratio from 0 to 0.1");
        }
    }
    // Durations that could not be read would only break inequalities they were not meant for.
    if found.errors.len() == before
        && let Err(broken) = timing.check()
    {
        for sentence in broken {
            found.error("timing", format!("profile {profile:?} with its overrides"), sentence);
        }
    }
    timing
}

fn damping(found: &mut Findings, raw: &RawTiming) -> Damping {
    let mut damping = Damping::DEFAULT;
    found.duration("timing.flap_window", raw.flap_window.as_deref(), &mut damping.window);
    found.duration("timing.flap_hold", raw.flap_hold.as_deref(), &mut damping.hold);
    found.duration("timing.flap_hold_max", raw.flap_hold_max.as_deref(), &mut damping.hold_max);
    if damping.hold_max < damping.hold {
        let remedy = format!(
            "flap_hold_max >= flap_hold does not hold: {} < {}",
            duration::format(damping.hold_max),
            duration::format(damping.hold)
        );
        found.error("timing.flap_hold_max", quoted(&duration::format(damping.hold_max)), remedy);
    }
    damping
}

fn log(found: &mut Findings, raw: &RawLog) -> LogConfig {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = raw.format.as_deref().unwrap_or("text");
    let format = found.choice("log.format", format, &formats).unwrap_or_default();
    let level = raw.level.clone().unwrap_or_else(|| "info".to_owned());
    if telemetry::check_filter(&level).is_err() {
        found.error("log.level", quoted(&level), telemetry::FILTER_REMEDY);
    }
    LogConfig { format, level }
}

/// Off, or enough for the ring to hold something.
fn trace(found: &mut Findings, raw: &RawTrace) -> u64 {
    let text = raw.size.as_deref().unwrap_or(TRACE_DEFAULT);
    let bytes = size::parse(text);
    match bytes {
        None => found.error("trace.size", quoted(text), size::EXPECTED),
        Some(bytes) if bytes > 0 && bytes < TRACE_BYTES_MIN => {
            let remedy = "expected at least 4MiB, or \"0\" to record nothing";
            found.error("trace.size", quoted(text), remedy);
        }
        Some(_) => {}
    }
    bytes.unwrap_or_default()
}

/// Sizes that fit each other; "auto" goes by the file system.
fn wal(found: &mut Findings, raw: &RawWal) -> WalConfig {
    let mut read = |field: &str, text: Option<&String>| -> Option<u64> {
        let text = text.filter(|text| *text != AUTO)?;
        let bytes = size::parse(text);
        if bytes.is_none() {
            found.error(field, quoted(text), size::EXPECTED);
        }
        bytes
    };
    let keep_bytes = read("wal.keep", raw.keep.as_ref()).unwrap_or(WAL_KEEP_DEFAULT);
    let bytes_max = read("wal.max", raw.max.as_ref());
    let reserve_bytes = read("wal.reserve", raw.reserve.as_ref());
    if let (Some(max), Some(text)) = (bytes_max, &raw.max) {
        if max < WAL_MAX_MIN {
            found.error("wal.max", quoted(text), "expected at least 256MiB, or \"auto\"");
        } else if max < keep_bytes {
            let remedy =
                format!("expected at least wal.keep, which is {}", size::format(keep_bytes));
            found.error("wal.max", quoted(text), remedy);
        }
    }
    WalConfig { keep_bytes, bytes_max, reserve_bytes }
}
