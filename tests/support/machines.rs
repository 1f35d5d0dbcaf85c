//! Machines of a test's own on one wire: each has its network, processes, IPC and root directory, the
//! last one over this host's by overlay, so that dpkg, its database and the maintainer scripts are the
//! real ones and nothing of the host is changed.
//!
//! Only root can make them. All of it is held by processes that end with the test, also when that is
//! killed: no named namespace, no mount that the host sees.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::processes::run;

const MACHINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/support/machine.sh");
const NETWORK: &str = "10.214.0";
/// Where the clients are.
const HUB: u32 = 1;

/// A machine; dropping it ends everything that runs in it.
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) address: String,
    base: PathBuf,
    holder: Child,
    /// The first process in it, as this host numbers it.
    first: u32,
}

impl Machine {
    fn make(below: &Path, name: &'static str, number: u32) -> Machine {
        let base = below.join(name);
        let tmp = base.join("root/tmp");
        std::fs::create_dir_all(&tmp).unwrap();
        std::fs::create_dir_all(base.join("root/var/lib")).unwrap();
        std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o1777)).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--ipc", "--net", "--uts", "--fork", "--kill-child"]);
        command.arg("bash").arg(MACHINE).arg(&base);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(holder.stdout.take().expect("it is piped"));
        lines.read_line(&mut said).unwrap();
        let first = only_child(holder.id());
        let address = format!("{NETWORK}.{number}");
        let machine = Machine { name, address, base, holder, first: first.unwrap_or(0) };
        assert_eq!(said, "made\n", "the machine {name} could not be made");
        assert_ne!(machine.first, 0, "the machine {name} has no process");
        // Nothing may ever be installed into the host's own root.
        let mark = format!("/proc/{}/root/machine-of-a-test", machine.first);
        assert!(Path::new(&mark).exists(), "{mark}: the process is not in the machine {name}");
        machine
    }

    /// A program in it, as root.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.first));
        command.args(["--mount", "--pid", "--ipc", "--net", "--uts", "--root", "--wd", "--"]);
        command.arg(program).env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// A program of this host with this machine's network.
    pub(crate) fn on_its_network(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.first)).arg("--");
        command.arg(program.as_ref());
        command
    }

    /// Where this host sees a path of the machine; not those below /etc and /usr.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.base.join("root").join(path.trim_start_matches('/'))
    }

    fn ip(&self, line: &str) {
        run(self.on_its_network("ip").args(line.split(' '))).good();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The first process ends with its stdin, and the kernel ends all others with it.
        drop(self.holder.stdin.take());
        self.holder.wait().ok();
    }
}

/// Machines of these names and one more for clients, which comes first, on a bridge.
pub(crate) fn wired(below: &Path, names: &[&'static str]) -> Vec<Machine> {
    let hub = Machine::make(below, "hub", HUB);
    hub.ip("link set lo up");
    hub.ip("link add wire type bridge");
    hub.ip(&format!("addr add {}/24 dev wire", hub.address));
    hub.ip("link set wire up");
    let mut machines = vec![hub];
    for (name, number) in names.iter().zip(HUB + 10..) {
        let machine = Machine::make(below, name, number);
        let hub = &machines[0];
        hub.ip(&format!("link add {name} type veth peer name eth0 netns {}", machine.first));
        hub.ip(&format!("link set {name} master wire up"));
        machine.ip("link set lo up");
        machine.ip(&format!("addr add {}/24 dev eth0", machine.address));
        machine.ip("link set eth0 up");
        machines.push(machine);
    }
    machines
}

/// The child that a process has, if it has one.
pub(crate) fn only_child(parent: u32) -> Option<u32> {
    let file = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(file).unwrap_or_default();
    children.split_whitespace().next()?.parse().ok()
}
