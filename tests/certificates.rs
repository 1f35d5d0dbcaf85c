//! Certificates exchanged under a cluster that runs and is written to: leaves, the authority, and files
//! that do not do.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use support::BINARY;
use support::lab::{DATA, GRPC_PORT, Lab, NODES, WITNESS, ZERO};
use support::load::Load;
use support::processes::run;

const ACTIVE: &str = DATA[0];
const REFUSED: &str = "understudy_certificate_files_refused";

fn openssl(directory: &Path, words: &str, more: &[&str]) {
    let mut command = Command::new("openssl");
    command.args(words.split(' ')).args(more).current_dir(directory);
    run(&mut command).good();
}

/// A certificate authority as an operator has one, with openssl alone.
struct Issuer {
    dir: PathBuf,
    cluster: String,
}

impl Issuer {
    /// The cluster's first, that `understudy init` made.
    fn first(lab: &Lab) -> Issuer {
        let config: toml::Table = fs::read_to_string(lab.config(ACTIVE)).unwrap().parse().unwrap();
        let cluster = config["cluster"].as_str().unwrap().to_owned();
        Issuer { dir: lab.cluster_dir().join("ca"), cluster }
    }

    /// Another one of the same cluster.
    fn another(lab: &Lab) -> Issuer {
        let Issuer { cluster, .. } = Issuer::first(lab);
        let dir = lab.root().join("new-ca");
        fs::create_dir(&dir).unwrap();
        let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
                     -keyout ca.key -out ca.pem -addext keyUsage=keyCertSign,cRLSign";
        let name = format!("/O=Understudy/CN=cluster {cluster}");
        let uri = format!("subjectAltName=URI:spiffe://{cluster}");
        openssl(&dir, words, &["-subj", &name, "-addext", &uri]);
        Issuer { dir, cluster }
    }

    fn certificate(&self) -> String {
        fs::read_to_string(self.dir.join("ca.pem")).unwrap()
    }

    /// A new key and certificate for this URI, beside each other.
    fn issue(&self, uri: &str, days: &str) -> (PathBuf, PathBuf) {
        let words = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key \
                     -out leaf.csr -subj /O=Understudy/CN=leaf -addext keyUsage=digitalSignature \
                     -addext extendedKeyUsage=serverAuth,clientAuth";
        openssl(&self.dir, words, &["-addext", &format!("subjectAltName=URI:{uri}")]);
        let words =
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -copy_extensions copy -out leaf.pem";
        openssl(&self.dir, words, &["-days", days]);
        (self.dir.join("leaf.pem"), self.dir.join("leaf.key"))
    }

    fn node_uri(&self, name: &str) -> String {
        format!("spiffe://{}/node/{name}", self.cluster)
    }

    /// Puts a new pair in the place of a node's, the key first.
    fn renew(&self, lab: &Lab, name: &str) {
        let (certificate, key) = self.issue(&self.node_uri(name), "365");
        fs::rename(key, tls(lab, name, "node.key")).unwrap();
        fs::rename(certificate, tls(lab, name, "node.pem")).unwrap();
    }

    /// The same for the operator's context.
    fn renew_operator(&self, lab: &Lab) {
        let uri = format!("spiffe://{}/person/operator/operator", self.cluster);
        let (certificate, key) = self.issue(&uri, "365");
        let contexts = lab.cluster_dir().join("contexts");
        fs::rename(key, contexts.join("operator.key")).unwrap();
        fs::rename(certificate, contexts.join("operator.pem")).unwrap();
    }
}

fn tls(lab: &Lab, name: &str, file: &str) -> PathBuf {
    lab.node_dir(name).join("tls").join(file)
}

/// Everybody's trust, people's too.
fn trust(lab: &mut Lab, authorities: &str) {
    fs::write(lab.cluster_dir().join("contexts/ca.pem"), authorities).unwrap();
    for name in NODES {
        fs::write(tls(lab, name, "ca.pem"), authorities).unwrap();
        told(lab, name, |lab| lab.signal_node(name, Signal::HUP));
    }
}

fn events(lab: &Lab, name: &str, kind: &str) -> Vec<Value> {
    let words = ["events", "--node", name, "--kind", kind, "--limit=1000", "--output=json"];
    let told: Value = serde_json::from_str(&lab.operator(&words).good()).unwrap();
    told["events"].as_array().unwrap().clone()
}

/// Does something after which a node says that it took new files into use.
fn told(lab: &mut Lab, name: &str, act: impl FnOnce(&mut Lab)) {
    let before = events(lab, name, "certificate-renewed").len();
    act(lab);
    lab.wait("a node to take its new files into use", |lab| {
        events(lab, name, "certificate-renewed").len() > before
    });
}

/// The certificate that a node shows to a new connection, without its first and last line.
fn served(lab: &Lab, name: &str) -> String {
    let contexts = lab.cluster_dir().join("contexts");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-cert", "operator.pem", "-key", "operator.key", "-alpn", "h2"]);
    command.arg("-connect").arg(format!("{}:{GRPC_PORT}", lab.address(name)));
    command.current_dir(contexts).stdin(Stdio::null());
    body(&run(&mut command).stdout)
}

fn body(text: &str) -> String {
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----").expect("it shows a certificate");
    let (body, _) = rest.split_once("-----END CERTIFICATE-----").unwrap();
    body.split_whitespace().collect()
}

fn in_file(lab: &Lab, name: &str) -> String {
    body(&fs::read_to_string(tls(lab, name, "node.pem")).unwrap())
}

fn metric(lab: &Lab, name: &str, metric: &str) -> Option<String> {
    let (_, text) = lab.get(name, "/metrics")?;
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let line = lines.find(|line| line.starts_with(metric))?;
    line.rsplit_once(' ').map(|(_, value)| value.to_owned())
}

#[test]
fn leaves_and_the_authority_are_exchanged_under_load_and_the_lease_stays_where_it_is() {
    let mut lab = Lab::founded(ZERO);
    let epoch = lab.epoch();
    let started = DATA.map(|name| lab.sql(name, "postgres", "SELECT pg_postmaster_start_time()"));
    let load = Load::start(&lab, ACTIVE);
    let (first, second) = (Issuer::first(&lab), Issuer::another(&lab));

    for name in NODES {
        told(&mut lab, name, |lab| {
            first.renew(lab, name);
            // The witness is told nothing: it sees that its files have changed.
            if name != WITNESS {
                lab.signal_node(name, Signal::HUP);
            }
        });
        assert_eq!(served(&lab, name), in_file(&lab, name), "{name}");
    }
    load.wait_for_more("the load to go on with new leaves");

    let both = first.certificate() + &second.certificate();
    trust(&mut lab, &both);
    let former = lab.root().join("former");
    run(Command::new("cp").arg("-rp").arg(lab.cluster_dir().join("contexts")).arg(&former)).good();
    for name in NODES {
        told(&mut lab, name, |lab| {
            second.renew(lab, name);
            lab.signal_node(name, Signal::HUP);
        });
        assert_eq!(served(&lab, name), in_file(&lab, name), "{name}");
    }
    second.renew_operator(&lab);
    let as_former = || {
        let mut status = Command::new(BINARY);
        status.arg("status").arg("--context").arg(former.join("operator.toml"));
        run(&mut status)
    };
    as_former().good();
    trust(&mut lab, &second.certificate());
    load.wait_for_more("the load to go on under the new authority");

    // It trusts both; it is the nodes that do not trust it.
    assert!(!as_former().status.success(), "a certificate of the old authority was accepted");
    lab.operator(&["status"]).good();
    assert_eq!(lab.epoch(), epoch);
    assert_eq!(load.failed_count(), 0, "a commit failed");
    load.finish(&lab, ACTIVE);
    let now = DATA.map(|name| lab.sql(name, "postgres", "SELECT pg_postmaster_start_time()"));
    assert_eq!(now, started);
    lab.check_daemons();

    // Nodes find each other anew under the new authority alone.
    for name in [WITNESS, DATA[1]] {
        lab.kill_node(name);
        lab.start(name);
        lab.wait("a node to be heard again", |lab| {
            lab.protected_under(ACTIVE)
                && lab.status_of(name).is_some_and(|status| status["majority"] == true)
        });
    }
    assert_eq!(lab.epoch(), epoch);
}

#[test]
fn files_that_do_not_do_are_refused_with_the_reason_and_the_old_ones_go_on() {
    let mut lab = Lab::founded(ZERO);
    let epoch = lab.epoch();
    let issuer = Issuer::first(&lab);
    let (pem, key) = (tls(&lab, ACTIVE, "node.pem"), tls(&lab, ACTIVE, "node.key"));
    let good = [fs::read(&pem).unwrap(), fs::read(&key).unwrap()];
    let in_use = served(&lab, ACTIVE);
    lab.wait("the metric", |lab| metric(lab, ACTIVE, REFUSED).as_deref() == Some("0"));
    assert!(metric(&lab, ACTIVE, "understudy_certificate_expiry_timestamp_seconds").is_some());

    let foreign = "spiffe://6f1a2b3c-0000-4000-8000-0123456789ab/node/north";
    let other = issuer.node_uri(DATA[1]);
    let own = issuer.node_uri(ACTIVE);
    let cases: [(&str, &str, u32, bool, &[&str]); 5] = [
        (&own, "365", 0o600, false, &["node.key", "does not belong to", "node.pem"]),
        (foreign, "365", 0o600, true, &["6f1a2b3c", "the configuration is of node north"]),
        (&other, "365", 0o600, true, &["node south", "node north"]),
        (&own, "0", 0o600, true, &["verify certificate", "node.pem", "expired"]),
        (&own, "365", 0o644, true, &["node.key", "0644", "chmod 600"]),
    ];
    for (number, (uri, days, mode, whole, words)) in cases.into_iter().enumerate() {
        let (new_pem, new_key) = issuer.issue(uri, days);
        let issued = SystemTime::now();
        // A certificate of no days is valid in the second of its making.
        lab.wait("a certificate of no days to be over", |_| {
            days != "0" || issued.elapsed().is_ok_and(|age| age > Duration::from_secs(1))
        });
        fs::set_permissions(&new_key, Permissions::from_mode(mode)).unwrap();
        fs::rename(new_key, &key).unwrap();
        if whole {
            fs::rename(new_pem, &pem).unwrap();
        }
        lab.signal_node(ACTIVE, Signal::HUP);
        lab.wait("the refusal", |lab| {
            let told = events(lab, ACTIVE, "certificate-refused");
            told.len() > number
                && told.last().is_some_and(|last| {
                    let said = last["words"].as_str().unwrap();
                    words.iter().all(|word| said.contains(word)) && last["severity"] == "warning"
                })
        });
        assert_eq!(served(&lab, ACTIVE), in_use, "{words:?}");
        assert_eq!(metric(&lab, ACTIVE, REFUSED).as_deref(), Some("1"));
    }
    assert!(lab.log_text(ACTIVE).contains("ERROR"), "a refusal needs somebody");

    // The good ones once more, and nobody is asked to look.
    fs::write(&pem, &good[0]).unwrap();
    fs::write(&key, &good[1]).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    lab.wait("the daemon to see that the files are mended", |lab| {
        metric(lab, ACTIVE, REFUSED).as_deref() == Some("0")
    });
    assert_eq!(served(&lab, ACTIVE), in_use);
    assert!(lab.protected_under(ACTIVE));
    assert_eq!(lab.epoch(), epoch);
}
