//! Links and wires between real namespaces, without a cluster: what is lost, late or reset, and that all
//! of it is proved and ends.
//!
//! Without root or namespaces it says that it is skipped.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Fault;
use super::links::{Links, Narrow};
use super::wire::{Habits, Wire};
use crate::arena::{Arena, address};

/// Sweeps the arena whatever the test comes to.
struct Swept(Arena);

impl Drop for Swept {
    fn drop(&mut self) {
        self.0.sweep(false).unwrap();
    }
}

/// Moves the calling thread into a namespace.
fn enter(arena: &Arena, site: &str) {
    let file = File::open(format!("/run/netns/{}", arena.namespace(site))).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// One byte there and back, within half a second; how long it took.
fn echo(arena: &Arena, from: &str) -> Option<Duration> {
    let (arena, from) = (arena.clone(), from.to_owned());
    let thread = std::thread::spawn(move || {
        enter(&arena, &from);
        let begun = Instant::now();
        let patience = Duration::from_millis(500);
        let target = format!("{}:7", address("south")).parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&target, patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.write_all(&[7; 900]).ok()?;
        stream.read_exact(&mut [0; 900]).ok()?;
        Some(begun.elapsed())
    });
    thread.join().unwrap()
}

/// Answers what comes at the site "south", for ever.
fn serve(arena: &Arena) {
    let arena = arena.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        enter(&arena, "south");
        let listener = TcpListener::bind((address("south"), 7)).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut bytes = [0; 900];
                if stream.read_exact(&mut bytes).is_ok() {
                    stream.write_all(&bytes).ok();
                }
            });
        }
    });
    is_ready.recv().unwrap();
}

fn healed(fault: &mut dyn Fault, what: &str) {
    let proof = fault.proof().unwrap();
    assert!(proof.is_some(), "no proof of {what}");
    fault.heal().unwrap();
    fault.heal().unwrap();
}

#[test]
fn links_lose_reset_and_delay_and_are_healed() {
    if crate::needs::check().is_err() {
        eprintln!("skipped: needs root and network namespaces");
        return;
    }
    let swept = Swept(Arena { number: std::process::id() });
    let arena = Arena::create().unwrap();
    serve(&arena);
    let usual = echo(&arena, "north").expect("the sites hear each other");

    let mut cut = Links::cut_one_way(&arena, "north", "south").unwrap();
    assert_eq!(cut.proof().unwrap(), None, "it is proved before anything was lost");
    assert_eq!(echo(&arena, "north"), None);
    assert!(echo(&arena, "witness").is_some(), "the others are cut, too");
    healed(&mut cut, "a cut");
    assert!(cut.packets_hit().unwrap() > 0);
    assert!(echo(&arena, "north").is_some());

    let mut large = Links::lose_large(&arena, "north", "south", 600).unwrap();
    assert_eq!(echo(&arena, "north"), None);
    drop(large.heal());

    let mut resets = Links::reset_all(&arena).unwrap();
    assert_eq!(echo(&arena, "north"), None);
    drop(resets.heal());

    let mut narrow = Narrow::begin(&arena, "north", "south", "8kbit").unwrap();
    // The first echo goes through in the class's burst, the next ones have to wait.
    for _ in 0..3 {
        echo(&arena, "north");
    }
    healed(&mut narrow, "a narrow link");
    assert!(echo(&arena, "north").is_some());

    // A thread of its own: TAP devices are made where the calling thread is, and who is inside an arena
    // would be among what is swept.
    let (inside, passed) = (arena.clone(), usual);
    std::thread::spawn(move || a_wire_is_late(&inside, passed)).join().unwrap();
    drop(swept);
}

fn a_wire_is_late(arena: &Arena, usual: Duration) {
    enter(arena, "hub");
    let habits = Habits {
        delay: Duration::from_millis(30),
        twice_every: 2,
        flip_every: 0,
        ..Habits::default()
    };
    let mut wire = Wire::begin(arena, "north", habits).unwrap();
    // The bridges learn where the site is now.
    let deadline = Instant::now() + Duration::from_secs(5);
    let late = loop {
        match echo(arena, "north") {
            Some(late) => break late,
            None => assert!(Instant::now() < deadline, "nothing comes through the wire"),
        }
    };
    // Connection and answer: two rounds through the wire, each later by twice its delay.
    assert!(late > usual + Duration::from_millis(110), "{late:?}, usually {usual:?}");
    healed(&mut wire, "a wire");
    let again = echo(arena, "north").expect("the link is back");
    assert!(again < late, "{again:?}, through the wire {late:?}");
}
