//! The live view: both sites side by side, the witness, the writes, the events.
//!
//! Pure rendering of a [`Scene`] into a frame; it reads no clock but the scene's and no keyboard.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Gauge, Paragraph, Sparkline, Wrap};
use understudy_proto::v1::{ClusterStatus, NodeStatus};

use super::events::epoch_text;
use super::scene::{Scene, Tone, ago_text, bytes_text};

const ACTIVE: Color = Color::Green;
const PASSIVE: Color = Color::Cyan;
const GONE: Color = Color::Red;
const QUIET: Color = Color::DarkGray;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, scene: &Scene) {
    let [title, headline, sites, cluster, writes, log, hint] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(11),
        Constraint::Length(4),
        Constraint::Length(6),
        Constraint::Min(4),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, title, scene);
    let sentence = Line::from(format!(" {}", scene.headline)).bold().fg(Color::Yellow);
    frame.render_widget(sentence, headline);
    let halves = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]);
    for (site, area) in scene.sites.iter().zip(halves.split(sites).iter()) {
        draw_site(frame, *area, scene, site);
    }
    draw_cluster(frame, cluster, scene);
    draw_writes(frame, writes, scene);
    draw_log(frame, log, scene);
    frame.render_widget(Line::from(format!(" {}", scene.hint)).fg(QUIET), hint);
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let mut spans = vec![
        Span::styled(" UNDERSTUDY ", Style::new().bg(Color::Blue).fg(Color::White).bold()),
        Span::raw(format!(" {}  ", scene.title)),
    ];
    if let Some((status, _)) = &scene.status {
        let epoch = epoch_text(status.epoch.as_ref());
        spans.push(Span::raw(format!("epoch {epoch} · {}  ", status.phase)).bold());
    }
    spans.push(Span::raw(format!("{:.0} s", scene.elapsed().as_secs_f64())).fg(QUIET));
    frame.render_widget(Line::from(spans), area);
}

/// The word and the colour of a node.
fn role(node: Option<&NodeStatus>) -> (String, Color) {
    match node {
        None => ("unknown".to_owned(), QUIET),
        Some(node) if node.state == "unreachable" => ("LOST".to_owned(), GONE),
        Some(node) if node.role == "active" && node.writable => ("ACTIVE".to_owned(), ACTIVE),
        Some(node) if node.role == "active" => ("ACTIVE, closed".to_owned(), Color::Yellow),
        Some(node) if node.role == "passive" && node.attached => ("PASSIVE".to_owned(), PASSIVE),
        Some(node) => (format!("{}, {}", node.role, node.state), Color::Yellow),
    }
}

fn draw_site(frame: &mut Frame<'_>, area: Rect, scene: &Scene, site: &str) {
    let node = scene.node(site);
    let (role, colour) = role(node);
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(colour))
        .title(Line::from(vec![
            Span::raw(format!(" {site} ")).bold(),
            Span::styled(format!(" {role} "), Style::new().fg(Color::Black).bg(colour).bold()),
            Span::raw(" "),
        ]));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let Some(node) = node else { return };
    let [facts, bar] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(inside);
    frame.render_widget(Paragraph::new(site_lines(scene, node)), facts);
    draw_bar(frame, bar, node);
}

fn site_lines(scene: &Scene, node: &NodeStatus) -> Vec<Line<'static>> {
    let fact = |name: &str, value: String| {
        Line::from(vec![Span::raw(format!(" {name:<12}")).fg(QUIET), Span::raw(value)])
    };
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "–".to_owned());
    let postgres = if node.postgres_running { &node.postgres_address } else { "down" };
    let timeline = node.timeline.map_or_else(|| "–".to_owned(), |number| number.to_string());
    let mut lines = vec![
        fact("daemon", format!("{}{}", node.state, if node.leader { ", Raft leader" } else { "" })),
        fact("PostgreSQL", format!("{postgres}, timeline {timeline}")),
    ];
    if node.role == "active" {
        lines.push(fact("flushed", known(&node.flush_lsn)));
        lines.push(fact("acknowledged", known(&node.released_lsn)));
    } else {
        let lag = node.durable_lag_bytes.map(|bytes| format!("  ({} behind)", bytes_text(bytes)));
        lines.push(fact("durable", known(&node.durable_lsn) + &lag.unwrap_or_default()));
        let lag = node.replay_lag_bytes.map(|bytes| format!("  ({} behind)", bytes_text(bytes)));
        lines.push(fact("replayed", known(&node.replay_lsn) + &lag.unwrap_or_default()));
    }
    let writes = match (&scene.stats, scene.writable()) {
        (Some(stats), Some(site)) if site == node.name => {
            format!("{:.0} per second", stats.writes_per_second)
        }
        _ => "none".to_owned(),
    };
    lines.push(fact("writes", writes));
    if let Some(ago) = node.heard_seconds_ago.filter(|ago| *ago > 1.0) {
        lines.push(fact("heard", format!("{ago:.1} s ago")).fg(GONE));
    }
    if !node.trouble.is_empty() {
        lines.push(Line::from(format!(" {}", node.trouble)).fg(Color::Yellow));
    }
    lines
}

/// The lease of the active, or the progress of a long step, as a bar.
fn draw_bar(frame: &mut Frame<'_>, area: Rect, node: &NodeStatus) {
    if let Some(progress) = &node.progress {
        let ratio = match progress.total_bytes {
            0 => 0.0,
            total => (progress.done_bytes as f64 / total as f64).clamp(0.0, 1.0),
        };
        let label = format!("{} {}", progress.what, bytes_text(progress.done_bytes));
        let gauge = Gauge::default().ratio(ratio).label(label).gauge_style(Color::Yellow);
        frame.render_widget(gauge, area);
    } else if let Some(left) = node.lease_left_seconds {
        // Three seconds is the default ttl; a longer lease fills the bar.
        let ratio = (left / 3.0).clamp(0.0, 1.0);
        let label = format!("lease {left:.1} s");
        let colour = if left > 0.5 { ACTIVE } else { GONE };
        frame.render_widget(Gauge::default().ratio(ratio).label(label).gauge_style(colour), area);
    }
}

fn draw_cluster(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let block = Block::bordered().border_type(BorderType::Rounded).title(" cluster ");
    let lines = match &scene.status {
        Some((status, at)) => cluster_lines(status, at.elapsed().as_secs_f64()),
        None => vec![Line::from(" no node answers yet").fg(QUIET)],
    };
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn cluster_lines(status: &ClusterStatus, age_seconds: f64) -> Vec<Line<'static>> {
    let nobody = |name: &str| if name.is_empty() { "nobody".to_owned() } else { name.to_owned() };
    let others = status.nodes.iter().filter(|node| node.kind == "witness");
    let others: Vec<String> =
        others.map(|node| format!("{} ({})", node.name, node.state)).collect();
    let exposure = match (status.exposure_seconds, status.exposure_bytes) {
        (Some(seconds), Some(bytes)) => format!("{seconds:.2} s, {}", bytes_text(bytes)),
        _ => "unknown".to_owned(),
    };
    let mut first = vec![
        Span::raw(format!(" leader {}   witness {}", nobody(&status.leader), others.join(", "))),
        Span::raw(format!("   dial {}", status.durability)),
        Span::raw(format!("   would be lost now: {exposure}")),
    ];
    if age_seconds > 1.5 {
        first.push(Span::raw(format!("   (status is {age_seconds:.1} s old)")).fg(GONE));
    }
    let verdict = match &status.failover {
        Some(verdict) => {
            let colour = if verdict.would_fail_over { ACTIVE } else { Color::Yellow };
            Line::from(format!(" failover: {}", verdict.words)).fg(colour)
        }
        None => Line::from(""),
    };
    vec![Line::from(first), verdict]
}

fn draw_writes(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let Some(stats) = &scene.stats else {
        let block = Block::bordered().border_type(BorderType::Rounded).title(" writes ");
        frame.render_widget(block, area);
        return;
    };
    let last = stats.last_acknowledged_ago.map_or_else(|| "never".to_owned(), ago_text);
    let stalled = stats.last_acknowledged_ago.is_none_or(|ago| ago.as_millis() > 500);
    let title = format!(
        " writes acknowledged: {} · {:.0}/s · last {last} · unknown outcome {} ",
        stats.acknowledged_count, stats.writes_per_second, stats.unknown_count
    );
    let outages: Vec<String> = stats
        .outages
        .iter()
        .map(|outage| match outage.write_outage() {
            Some(length) => format!("{:.2} s", length.as_secs_f64()),
            None => "going on".to_owned(),
        })
        .collect();
    let bottom = match outages.is_empty() {
        true => String::new(),
        false => format!(" write outages: {} ", outages.join(", ")),
    };
    let colour = if stalled { GONE } else { ACTIVE };
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(colour))
        .title(title)
        .title_bottom(Line::from(bottom).bold());
    let width = usize::from(block.inner(area).width);
    let visible = &stats.history[stats.history.len().saturating_sub(width)..];
    let graph = Sparkline::default().data(visible).style(Style::new().fg(colour)).block(block);
    frame.render_widget(graph, area);
}

fn draw_log(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let block = Block::bordered().border_type(BorderType::Rounded).title(" events ");
    let rows = usize::from(block.inner(area).height);
    let mut lines: Vec<Line<'_>> = scene.lines().rev().take(rows).map(log_line).collect();
    lines.reverse();
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), area);
}

fn log_line(line: &super::scene::Line) -> Line<'_> {
    let style = match line.tone {
        Tone::Cluster => Style::new(),
        Tone::Demo => Style::new().fg(Color::Yellow),
        Tone::Fault => Style::new().fg(GONE).add_modifier(Modifier::BOLD),
        Tone::Good => Style::new().fg(ACTIVE).add_modifier(Modifier::BOLD),
    };
    let at = Span::raw(format!(" {:>7.2} ", line.at.as_secs_f64())).fg(QUIET);
    Line::from(vec![at, Span::styled(line.text.as_str(), style)])
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
