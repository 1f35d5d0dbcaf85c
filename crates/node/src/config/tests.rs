//! A configuration is refused with everything that is wrong, and shown so that it loads to the same.

use std::path::Path;

use super::*;

const GOOD: &str = r#"
cluster = "6f1a2b3c-0000-4000-8000-0123456789ab"
name = "north"
site = "north"
kind = "data"
data_dir = "/var/lib/understudy"

[listen]
grpc = "127.0.1.1:7400"

[tls]
ca = "tls/ca.pem"
certificate = "tls/node.pem"
key = "tls/node.key"

[[members]]
name = "north"
id = 1
site = "north"
kind = "data"
address = "127.0.1.1:7400"

[[members]]
name = "south"
id = 2
site = "south"
kind = "data"
address = "127.0.1.2:7400"

[[members]]
name = "witness"
id = 3
site = "third"
kind = "witness"
address = "127.0.1.3:7400"

[postgres]
data_directory = "/var/lib/understudy/pgdata"

[postgres.parameters]
shared_buffers = "64MB"
max_connections = 50
"auto_explain.log_analyze" = true
"#;

fn parse(text: &str) -> Result<NodeConfig, ConfigErrors> {
    NodeConfig::parse(text, Path::new("/etc/understudy/node.toml"))
}

fn errors(text: &str) -> Vec<String> {
    match parse(text) {
        Err(ConfigErrors::Invalid { errors, .. }) => errors.iter().map(|e| e.to_string()).collect(),
        other => panic!("expected invalid values: {other:?}"),
    }
}

#[test]
fn defaults_are_filled_in_and_relative_paths_count_from_the_file() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.listen_http.to_string(), "127.0.1.1:7480");
    assert_eq!(config.tls.key, Path::new("/etc/understudy/tls/node.key"));
    assert_eq!(config.id, NodeId(1));
    assert_eq!(config.initial_active.as_str(), "north");
    assert_eq!(config.timing, Timing::DEFAULT);
    assert_eq!(config.warnings, Vec::<String>::new());
    let postgres = config.postgres.unwrap();
    assert_eq!(postgres.advertise, "127.0.1.1:5432");
    assert_eq!(postgres.socket_directory, Path::new("/var/lib/understudy/run"));
    assert_eq!(postgres.parameters["auto_explain.log_analyze"], "on");
}

#[test]
fn what_is_shown_loads_to_the_same() {
    let fast = format!(
        "{GOOD}\n[timing]\nprofile = \"fast\"\n[log]\nlevel = \"warn\"\n[trace]\nsize = \"0\"\n[wal]\nkeep = \"2GiB\"\nmax = \"auto\"\nreserve = \"1GiB\"\n"
    );
    for text in [GOOD, &fast] {
        let config = parse(text).unwrap();
        assert_eq!(parse(&config.show()).unwrap(), config, "{}", config.show());
    }
}

#[test]
fn everything_wrong_is_reported_at_once_with_field_value_and_remedy() {
    let text = GOOD
        .replace(
            "name = \"north\"\nsite = \"north\"\nkind = \"data\"\ndata",
            "name = \"north\"\nsite = \"nord\"\nkind = \"data\"\ndata",
        )
        .replace("id = 3", "id = 2")
        .replace("127.0.1.2:7400", "127.0.1.1:7400")
        .replace("shared_buffers = \"64MB\"", "fsync = false")
        + "[durability]\nrpo = \"15\"\nmode = \"none\"\n[log]\nlevel = \"debgu\"\n[trace]\nsize = \"1MB\"\n[wal]\nkeep = \"1\"\nmax = \"1MiB\"\n";
    let errors = errors(&text);
    let expected = [
        "site = \"nord\": this node's entry in members says \"north\"",
        "members[2].id = 2: members[1] has it already",
        "members[1].address = \"127.0.1.1:7400\"",
        "postgres.parameters.fsync = false: remove it",
        "durability.rpo = \"15\": expected whole numbers with units",
        "durability.mode = \"none\": expected one of zero",
        "log.level = \"debgu\": expected error, warn, info",
        "trace.size = \"1MB\": expected a whole number with KiB, MiB or GiB",
        "wal.keep = \"1\": expected a whole number with KiB, MiB or GiB",
        "wal.max = \"1MiB\": expected at least 256MiB, or \"auto\"",
    ];
    for part in expected {
        assert!(errors.iter().any(|error| error.contains(part)), "{part} is not in {errors:#?}");
    }
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
}

#[test]
fn a_broken_inequality_is_shown_with_its_numbers() {
    let errors = errors(&format!("{GOOD}\n[timing]\nrenew_interval = \"2s\"\n"));
    assert!(errors[0].contains("2 × renew_interval"), "{errors:?}");
    assert!(errors[0].contains("2s"), "{errors:?}");
    let text = format!("{GOOD}\n[durability]\nrpo = \"5s\"\n");
    assert!(self::errors(&text)[0].contains("rpo >= 2 × lease_ttl"), "rpo");
}

#[test]
fn a_field_that_does_not_exist_is_refused_by_name() {
    let error = parse(&format!("{GOOD}\n[timing]\nrenewal = \"2s\"\n")).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("renewal"));
}

#[test]
fn a_directory_too_deep_for_a_socket_is_refused_with_how_much_to_save() {
    let deep = format!("/{}", "d".repeat(110));
    let errors = errors(&GOOD.replace("/var/lib/understudy\"", &format!("{deep}\"")));
    assert!(errors[0].starts_with("data_dir") && errors[0].contains("bytes shorter"), "{errors:?}");
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn the_nodes_own_directory_inside_pgdata_is_refused() {
    let text = GOOD.replace("/var/lib/understudy/pgdata", "/var/lib");
    assert!(errors(&text)[0].contains("would destroy"));
    let text = GOOD.replace("/var/lib/understudy/pgdata", "/var/lib/understudy/wal/x");
    assert!(errors(&text)[0].contains("own files"));
}

#[test]
fn two_places_are_allowed_with_a_warning_and_six_data_nodes_are_not() {
    let config = parse(&GOOD.replace("site = \"third\"", "site = \"south\"")).unwrap();
    assert!(
        config.warnings.iter().any(|w| w.contains("two places alone")),
        "{:?}",
        config.warnings
    );
    assert!(config.warnings.iter().any(|w| w.contains("no majority")), "{:?}", config.warnings);
    let third = GOOD.replace("kind = \"witness\"", "kind = \"data\"");
    assert_eq!(parse(&third).unwrap().members.len(), 3);
    let more = (4..=6).fold(third, |text, id| {
        let host = format!("127.0.1.{id}");
        let entry = format!(
            "[[members]]\nname = \"n{id}\"\nid = {id}\nsite = \"n{id}\"\nkind = \"data\"\naddress = \
             \"{host}:7400\"\n\n[postgres]\n"
        );
        text.replacen("[postgres]\n", &entry, 1)
    });
    let errors = errors(&more);
    assert!(
        errors[0].contains("6 data nodes and journals") && errors[0].contains("at most 5"),
        "{errors:?}"
    );
}

#[test]
fn data_is_only_where_it_is_allowed() {
    let in_region = |text: &str, site: &str, region: &str| {
        let entry = format!("site = \"{site}\"\nkind = \"data\"\naddress");
        let with = format!("site = \"{site}\"\nregion = \"{region}\"\nkind = \"data\"\naddress");
        assert!(text.contains(&entry), "{text}");
        text.replacen(&entry, &with, 1)
    };
    let allowed = GOOD.replacen("cluster =", "allowed_regions = [\"eu\", \"ch\"]\ncluster =", 1);
    let unnamed = errors(&in_region(&allowed, "north", "eu"));
    assert_eq!(unnamed.len(), 1, "{unnamed:?}");
    assert!(unnamed[0].contains("members[1].region") && unnamed[0].contains("absent"));
    let both = in_region(&in_region(&allowed, "north", "eu"), "south", "us");
    let elsewhere = errors(&both);
    assert!(elsewhere[0].contains("\"us\"") && elsewhere[0].contains("ch, eu"), "{elsewhere:?}");
    // The witness has no data, so it may be anywhere; and it is sent none.
    let config = parse(&in_region(&in_region(&allowed, "north", "eu"), "south", "ch")).unwrap();
    let may = |name: &str| {
        let member = config.members.iter().find(|member| member.name.as_str() == name).unwrap();
        member.check_may_have_data(&config.allowed_regions)
    };
    assert_eq!(may("south"), Ok(()));
    assert!(may("witness").unwrap_err().contains("sent no data"));
    assert_eq!(
        NodeConfig::parse(&config.show(), Path::new("/x")).unwrap().allowed_regions.len(),
        2
    );
}

#[test]
fn a_journal_keeps_data_and_has_no_postgresql() {
    let text = GOOD.replace("kind = \"witness\"", "kind = \"journal\"");
    let config = parse(&text).unwrap();
    assert!(config.warnings.iter().any(|words| words.contains("waits for witness as well")));
    let either = text.clone() + "\n[durability]\ndurable_copies = 1\n";
    let config = parse(&either).unwrap();
    assert!(config.warnings.iter().all(|words| !words.contains("waits for witness")));
    let allowed = text.replacen("cluster =", "allowed_regions = [\"eu\"]\ncluster =", 1);
    let refused = errors(&allowed);
    assert!(refused.iter().any(|error| error.contains("a journal node has to be in one of")));
    let own = text.replacen(
        "name = \"north\"\nsite = \"north\"\nkind = \"data\"",
        "name = \"witness\"\nsite = \"third\"\nkind = \"journal\"",
        1,
    );
    assert!(errors(&own)[0].contains("without a PostgreSQL"));
    let end = own.find("[postgres]").unwrap();
    let config = parse(&own[..end]).unwrap();
    assert!(config.postgres.is_none() && config.kind == NodeKind::Journal);
    let shown = NodeConfig::parse(&config.show(), Path::new("/x")).unwrap();
    assert_eq!(shown.members[2].kind, NodeKind::Journal);
    let first = text.replacen("cluster =", "initial_active = \"witness\"\ncluster =", 1);
    assert!(errors(&first)[0].contains("must be a data node"));
}

#[test]
fn a_witness_has_no_postgresql_and_a_data_node_must() {
    let swap = |text: &str| {
        text.replacen(
            "name = \"north\"\nsite = \"north\"\nkind = \"data\"",
            "name = \"witness\"\nsite = \"third\"\nkind = \"witness\"",
            1,
        )
    };
    assert!(errors(&swap(GOOD))[0].contains("a witness keeps no data"));
    let end = GOOD.find("[postgres]").unwrap();
    assert!(errors(&GOOD[..end])[0].contains("a data node needs"));
    assert!(parse(&swap(&GOOD[..end])).unwrap().postgres.is_none());
}

#[test]
fn hooks_are_read_shown_and_refused_with_what_would_be_right() {
    let good = format!(
        "{GOOD}\n[[hooks]]\non = [\"role-change\", \"alert\"]\ncommand = [\"/bin/true\", \"a b\"]\n\
         [[hooks]]\non = [\"info\"]\ncommand = [\"/nonexistent\"]\ntimeout = \"1m\"\nuser = \"nobody\"\n"
    );
    let config = parse(&good).unwrap();
    assert_eq!(parse(&config.show()).unwrap(), config, "{}", config.show());
    assert_eq!(config.hooks[0].timeout, std::time::Duration::from_secs(10));
    let wrong: Vec<String> = config.check_hooks().iter().map(ToString::to_string).collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].starts_with("hooks[1].command = \"/nonexistent\": expected a program"));

    let bad = format!(
        "{GOOD}\n[[hooks]]\non = [\"role\", \"hook-failed\"]\ncommand = [\"true\"]\n\
         timeout = \"1h\"\nuser = \"\"\n[[hooks]]\non = []\ncommand = []\n"
    );
    let errors = errors(&bad);
    let expected = [
        "hooks[0].on = \"role\": expected any of info, warning, alert, daemon-started, role-change",
        "hooks[0].on = \"hook-failed\": expected any of",
        "hooks[0].command = [\"true\"]: expected an absolute path",
        "hooks[0].timeout = \"1h\": expected 100ms to 5m",
        "hooks[0].user = \"\": expected a user's name",
        "hooks[1].on = []: expected at least one kind",
        "hooks[1].command = []: expected an absolute path",
    ];
    for part in expected {
        assert!(errors.iter().any(|error| error.starts_with(part)), "{part} is not in {errors:#?}");
    }
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
}
