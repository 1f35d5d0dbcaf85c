//! What `init` makes loads, is private where it must be, and replaces nothing.

use std::os::unix::fs::PermissionsExt;

use understudy_node::config::NodeConfig;
use understudy_transport::{Identity, ListenOptions, Listener, Role, TlsIdentity};

use super::*;
use crate::context::Context;

fn topology(specs: &[&str]) -> Topology {
    let nodes = specs.iter().map(|spec| spec.parse().unwrap()).collect();
    Topology { nodes, ..Topology::default() }
}

fn usual() -> Topology {
    topology(&[
        "name=north,address=127.0.1.1,postgres-port=6001",
        "name=south,address=127.0.1.2",
        "name=third,kind=witness,address=127.0.1.3",
    ])
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn every_nodes_directory_loads_and_its_secrets_are_private() {
    let temp = tempfile::tempdir().unwrap();
    let founded = found(&temp.path().join("c"), &usual()).unwrap();
    assert_eq!(founded.warnings, Vec::<String>::new());
    for node in &founded.nodes {
        let config = NodeConfig::load(&node.config_file).unwrap();
        let identity =
            TlsIdentity::load(&config.tls.ca, &config.tls.certificate, &config.tls.key).unwrap();
        assert_eq!(identity.identity(), &Identity::Node(config.name.clone()));
        assert_eq!(identity.cluster(), config.cluster);
        assert_eq!(config.members.len(), 3);
        assert_eq!(mode(&config.tls.key), 0o600);
        assert_eq!(mode(config.tls.key.parent().unwrap()), 0o700);
        assert_eq!(mode(config.data_dir.parent().unwrap()) & 0o001, 1);
    }
    let north = NodeConfig::load(&founded.nodes[0].config_file).unwrap().postgres.unwrap();
    assert_eq!((north.port, north.listen_addresses.as_str()), (6001, "127.0.1.1"));
    assert_eq!(mode(&founded.dir.join("ca")), 0o700);
    assert_eq!(mode(&founded.dir.join("ca/ca.key")), 0o600);
    for role in Role::ALL {
        let context = Context::load(&founded.dir.join(format!("contexts/{role}.toml"))).unwrap();
        assert!(
            matches!(context.identity.identity(), Identity::Person { role: r, .. } if *r == role)
        );
    }
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("c");
    found(&dir, &usual()).unwrap();
    let before = std::fs::read(dir.join("ca/ca.pem")).unwrap();
    assert!(found(&dir, &usual()).unwrap_err().to_string().contains("not empty"));
    assert_eq!(std::fs::read(dir.join("ca/ca.pem")).unwrap(), before);
}

#[test]
fn nodes_that_share_a_name_an_address_or_a_port_are_refused_before_anything_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("c");
    let cases = [
        (["name=a,address=127.0.1.1", "name=a,address=127.0.1.2"], "members[0] has it already"),
        (["name=a,address=127.0.1.1", "name=b,address=127.0.1.1"], "members[0] has it already"),
        (["name=a,address=127.0.1.1:1", "name=b,address=127.0.1.1:2"], "PostgreSQL's port 5432"),
        (
            ["name=a,address=127.0.1.1", "name=b,kind=king,address=127.0.1.2"],
            "one of data, witness",
        ),
    ];
    for (specs, expected) in cases {
        let error = found(&dir, &topology(&specs)).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected} is not in {error}");
        assert!(!dir.exists());
    }
    assert!(found(&dir, &topology(&["name=../a,address=127.0.1.1"])).is_err());
    assert!("name=a,adress=x".parse::<NodeSpec>().unwrap_err().contains("adress"));
}

#[test]
fn a_topology_file_says_what_all_nodes_share() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("topology.toml");
    let text = "initial_active = \"south\"\n[timing]\nprofile = \"fast\"\n[parameters]\n\
                max_connections = 50\n[[nodes]]\nname = \"north\"\naddress = \"127.0.1.1\"\n\
                [[nodes]]\nname = \"south\"\naddress = \"127.0.1.2\"\npostgres-port = 6002\n";
    std::fs::write(&file, text).unwrap();
    let founded = found(&temp.path().join("c"), &Topology::load(&file).unwrap()).unwrap();
    assert_eq!(founded.initial_active.as_str(), "south");
    assert!(founded.warnings[0].contains("two places alone"), "{:?}", founded.warnings);
    let config = NodeConfig::load(&founded.nodes[1].config_file).unwrap();
    assert_eq!(config.timing, understudy_node::config::Timing::FAST);
    let postgres = config.postgres.unwrap();
    assert_eq!(postgres.parameters["max_connections"], "50");
    assert_eq!(postgres.port, 6002);
}

#[tokio::test]
async fn a_context_reaches_the_node_that_is_up_and_says_why_another_is_not() {
    let temp = tempfile::tempdir().unwrap();
    let founded = found(&temp.path().join("c"), &usual()).unwrap();
    let mut context = Context::load(&founded.dir.join("contexts/viewer.toml")).unwrap();
    let config = NodeConfig::load(&founded.nodes[1].config_file).unwrap();
    let south =
        TlsIdentity::load(&config.tls.ca, &config.tls.certificate, &config.tls.key).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any, &south, ListenOptions::default()).await.unwrap();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for node in &mut context.nodes {
        node.address = unused.to_string();
    }
    let error = context.connect(&context.nodes[0]).await.unwrap_err().to_string();
    assert!(error.contains("node north at"), "{error}");

    context.nodes[1].address = listener.local_addr().to_string();
    let _incoming = listener.incoming();
    context.connect(&context.nodes[1]).await.unwrap();
}
