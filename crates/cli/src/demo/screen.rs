//! Where the scene goes: a live view on a terminal, or lines; and the keys that come back.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::{mpsc, watch};

use super::scene::{Scene, Tone};
use super::view;

/// The scene as director, watcher and screen share it; held only to read or change some fields.
pub(super) type SharedScene = Arc<Mutex<Scene>>;

pub(super) fn lock(scene: &SharedScene) -> MutexGuard<'_, Scene> {
    // A panic while drawing must not hide what went wrong first.
    scene.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a person ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `f`: lose the active site.
    Fail,
    /// `q`: finish, with the account.
    Finish,
}

/// How the scene is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// The live view.
    Live,
    /// Lines on stdout.
    Lines,
    /// Lines on stderr, because stdout belongs to the account.
    LinesOnStderr,
}

impl Manner {
    pub(super) fn choose(json: bool, plain: bool) -> Manner {
        let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
        match (json, terminal && !plain) {
            (true, _) => Manner::LinesOnStderr,
            (false, true) => Manner::Live,
            (false, false) => Manner::Lines,
        }
    }
}

/// Shows the scene on a thread of its own until it is dropped; the terminal is then as it was.
pub(super) struct Screen {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Screen {
    /// `abort` becomes true with Ctrl-C, which a live view gets as a key and not as a signal.
    pub(super) fn open(
        manner: Manner,
        scene: SharedScene,
        orders: mpsc::Sender<Order>,
        abort: watch::Sender<bool>,
    ) -> Screen {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = std::thread::spawn(move || match manner {
            Manner::Live => show_live(&scene, &orders, &abort, &ended),
            Manner::Lines => show_lines(&scene, &ended, std::io::stdout()),
            Manner::LinesOnStderr => show_lines(&scene, &ended, std::io::stderr()),
        });
        Screen { stop, thread: Some(thread) }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn show_live(
    scene: &SharedScene,
    orders: &mpsc::Sender<Order>,
    abort: &watch::Sender<bool>,
    stop: &AtomicBool,
) {
    let mut terminal = ratatui::init();
    while !stop.load(Ordering::Relaxed) {
        let drawn = terminal.draw(|frame| view::draw(frame, &lock(scene)));
        let key = match crossterm::event::poll(Duration::from_millis(100)) {
            Ok(true) => crossterm::event::read().ok(),
            Ok(false) => None,
            Err(_) => break,
        };
        match key.and_then(|event| key_of(&event)) {
            Some(Key::Order(order)) => {
                // A full queue means that nobody listens just now; the key can be pressed again.
                orders.try_send(order).ok();
            }
            Some(Key::Abort) => {
                abort.send_replace(true);
            }
            None => {}
        }
        if drawn.is_err() {
            break;
        }
    }
    ratatui::restore();
}

enum Key {
    Order(Order),
    Abort,
}

fn key_of(event: &Event) -> Option<Key> {
    let Event::Key(key) = event else { return None };
    if key.kind != KeyEventKind::Press {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Abort),
        KeyCode::Char('f') => Some(Key::Order(Order::Fail)),
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Order(Order::Finish)),
        _ => None,
    }
}

fn show_lines(scene: &SharedScene, stop: &AtomicBool, mut out: impl Write) {
    let mut seen = 0;
    let mut summary_at = Instant::now();
    loop {
        let last = stop.load(Ordering::Relaxed);
        let mut text = String::new();
        {
            let scene = lock(scene);
            for line in scene.lines_since(&mut seen) {
                let mark = match line.tone {
                    Tone::Cluster => " ",
                    Tone::Demo => "·",
                    Tone::Fault => "!",
                    Tone::Good => "✓",
                };
                text += &format!("{:8.2} {mark} {}\n", line.at.as_secs_f64(), line.text);
            }
            if summary_at.elapsed() >= Duration::from_secs(1) && scene.status.is_some() {
                summary_at = Instant::now();
                text += &format!("{:8.2}   {}\n", scene.elapsed().as_secs_f64(), scene.plain());
            }
        }
        // Nobody may be reading any more; the account is still worth finishing.
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
        if last {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
