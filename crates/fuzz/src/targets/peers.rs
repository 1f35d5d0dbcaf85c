//! How nodes of the consensus greet each other: only a founding member of this cluster is believed.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use understudy_consensus::{FoundingMember, PROTOCOL_VERSION, check_hello, check_hello_of};
use understudy_proto::v1;
use understudy_types::{ClusterId, NodeId, NodeKind};
use uuid::Uuid;

use super::Target;
use super::shipping::{MEMORY_TIMES, plain, right};
use crate::allocation::within;
use crate::random::Random;

pub(super) const TARGET: Target = Target {
    name: "hello",
    about: "how nodes greet each other",
    words: &[b"north-1", b"south-1", b"witness"],
    polish,
    judge,
};

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(1));
const ASKED: NodeId = NodeId(2);

fn members() -> BTreeMap<NodeId, FoundingMember> {
    let names = [("north-1", "north"), ("south-1", "south"), ("witness", "third")];
    let member = |(index, (name, site)): (usize, (&str, &str))| {
        let id = NodeId(index as u64 + 1);
        let member = FoundingMember {
            id,
            name: name.parse().expect("a good name"),
            site: site.parse().expect("a good name"),
            kind: if index == 2 { NodeKind::Witness } else { NodeKind::Data },
            address: format!("{name}.example.org:7400"),
        };
        (id, member)
    };
    names.into_iter().enumerate().map(member).collect()
}

fn judge(input: &[u8]) -> String {
    let bytes = Bytes::copy_from_slice(input);
    let decoded = within(input.len(), MEMORY_TIMES, || v1::Hello::decode(bytes));
    let Ok(hello) = decoded else { return "no message".to_owned() };
    assert_eq!(v1::Hello::decode(&*hello.encode_to_vec()).as_ref(), Ok(&hello));
    let members = members();
    let heard = check_hello(&hello, CLUSTER, &members);
    let answered = check_hello_of(ASKED, &hello, CLUSTER, &members);
    if heard.is_ok() {
        let member = &members[&NodeId(hello.node_id)];
        assert_eq!((member.name.as_str(), CLUSTER.to_string()), (&*hello.node, hello.cluster));
        assert_eq!(hello.protocol_version, PROTOCOL_VERSION);
    }
    if answered.is_ok() {
        assert!(heard.is_ok() && hello.node_id == ASKED.0);
        let ours: Vec<_> = members.values().map(v1::FoundingMember::from).collect();
        assert_eq!(hello.members, ours);
    }
    let word = |result: Result<(), String>| match result {
        Ok(()) => "good".to_owned(),
        Err(why) => plain(&why),
    };
    format!("{} {}", word(heard), word(answered))
}

fn polish(input: &mut Vec<u8>, random: &mut Random) {
    let Ok(mut hello) = v1::Hello::decode(&**input) else { return };
    right(random, || hello.protocol_version = PROTOCOL_VERSION);
    right(random, || hello.cluster = CLUSTER.to_string());
    right(random, || hello.node_id = ASKED.0);
    right(random, || hello.node = "south-1".to_owned());
    right(random, || hello.members = members().values().map(v1::FoundingMember::from).collect());
    *input = hello.encode_to_vec();
}
