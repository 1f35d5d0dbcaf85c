//! A bounded slice of the long run: every kept input, and some thousands of new ones, the same each time.
//! `cargo xtask fuzz` goes on from there.
#![allow(clippy::unwrap_used)] // a test says what it expects by panicking

use understudy_fuzz::corpus;
use understudy_fuzz::engine::{self, Budget};
use understudy_fuzz::targets::TARGETS;

/// What the corpus may come to: it is read with every clone.
const CORPUS_BYTES_MAX: usize = 1 << 20;

fn slice(name: &str, inputs: u64) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let kept: Vec<_> = corpus::load(name).unwrap().into_iter().map(|(_, input)| input).collect();
    assert!(!kept.is_empty(), "nothing is kept for {name}");
    let done = engine::run(target, &kept, Budget::Inputs(inputs), 1, &mut |_| {});
    let done = done.unwrap_or_else(|failure| {
        let path = corpus::keep(name, &failure.input).unwrap();
        panic!("{}\nthe input is kept as {}", failure.message, path.display())
    });
    // Inputs that are all refused at the door would show nothing.
    assert!(done.answer_count >= 5, "only {} different answers", done.answer_count);
}

macro_rules! slices {
    ($($test:ident: $name:literal, $inputs:literal;)*) => {
        $(#[test] fn $test() { slice($name, $inputs); })*

        #[test]
        fn every_target_has_its_slice() {
            let here = [$($name),*];
            assert!(TARGETS.iter().all(|target| here.contains(&target.name)));
        }
    };
}

slices! {
    page_headers: "pages", 40_000;
    wal: "scanner", 250;
    damaged_wal: "damage", 3000;
    transactions_in_wal: "transactions", 5000;
    records: "records", 10_000;
    server_messages: "backend", 40_000;
    client_messages: "frontend", 40_000;
    streamed_messages: "streaming", 30_000;
    startup_packets: "startup", 40_000;
    replication_commands: "commands", 40_000;
    history_files: "history", 40_000;
    messages_to_a_source: "to-source", 20_000;
    messages_from_a_source: "from-source", 20_000;
    greetings: "hello", 10_000;
}

#[test]
fn the_corpus_is_small_and_belongs_to_targets() {
    let mut bytes = 0;
    for entry in std::fs::read_dir(corpus::directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TARGETS.iter().any(|target| target.name == name), "{name} is no target");
        bytes += corpus::load(&name).unwrap().iter().map(|(_, input)| input.len()).sum::<usize>();
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes are kept");
}
