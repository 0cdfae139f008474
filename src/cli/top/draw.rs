//! The screen, made of the state alone: what is the same is drawn the same.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Widget};

use super::app::App;
use super::areas::Areas;
use super::dialog::{Dialog, Extend, Kill};
use super::log::Log;
use super::paint::{Paint, bold, fit, width, wrap, write};
use super::{detail, table};
use crate::cli::output::{Tone, command_line, health_tone};
use crate::model::{Health, KillMode, Rule, escape, human_duration};

/// The keys of the status line, those first that are needed most.
const KEYS: [&str; 9] =
    ["? help", "q quit", "/ filter", "s sort", "k kill", "f freeze", "e extend", "l logs", "Enter more"];

/// All keys, and what they do.
const HELP: [(&str, &str); 19] = [
    ("Up, Down, PgUp, PgDn", "select a run"),
    ("Home, End", "the first, the last"),
    ("Enter", "all about the run; Esc goes back"),
    ("k", "kill: SIGTERM, grace, then for good; asks why"),
    ("K", "kill by force: for good at once; asks why"),
    ("f", "freeze, or thaw"),
    ("e", "extend a limit"),
    ("l", "the log of a detached run"),
    ("/", "filter by a text; Esc takes it back"),
    ("s, >, <", "sort by the next, the next, the one before"),
    ("r", "the other way round"),
    ("A", "everybody's runs, or your own"),
    ("Ctrl-L, Ctrl-Z", "draw anew, stop until fg"),
    ("q, Ctrl-C", "quit"),
    ("", ""),
    ("✗ ! ✓", "health: critical, warning, healthy"),
    ("DEADLINE", "how much is over of the time after which it is ended"),
    ("BEAT", "since its last heartbeat"),
    ("CPU%", "of one core, over ten seconds"),
];

/// Draws the state.
pub fn draw(app: &App, paint: Paint, frame: &mut Frame<'_>) {
    let screen = frame.area();
    let areas = Areas::of((screen.width, screen.height));
    if let Some(log) = &app.log {
        draw_log(log, paint, screen, frame);
    } else if let Some(from) = app.whole {
        let whole = Rect { height: screen.height.saturating_sub(areas.status.height), ..screen };
        detail::draw_whole(app, paint, whole, from, frame.buffer_mut());
    } else {
        write(frame.buffer_mut(), areas.header, &header(app, paint));
        table::draw(app, paint, areas.table, frame.buffer_mut());
        if areas.details.height > 0 {
            detail::draw(app, paint, areas.details, frame.buffer_mut());
        }
    }
    if app.log.is_none() {
        status(app, paint, areas.status, frame);
    }
    match &app.dialog {
        Some(Dialog::Help) => dialog(" Keys ", help(), None, frame),
        Some(Dialog::Kill(kill)) => ask_about_kill(kill, paint, frame),
        Some(Dialog::Extend(extend)) => ask_about_extension(extend, paint, frame),
        Some(Dialog::Filter) | None => {}
    }
}

fn header(app: &App, paint: Paint) -> Vec<Line<'static>> {
    let mut first = vec![bold("guardian top")];
    let mut tell = |span: Span<'static>| first.extend([Span::raw("  "), span]);
    if let Some(instance) = &app.instance {
        tell(Span::raw(format!("{} instance ", escape(&instance.instance))));
        let health = [Health::Healthy, Health::Warning, Health::Critical];
        let health = health.into_iter().find(|health| health.as_str() == instance.health).unwrap_or_default();
        first.push(paint.health(health));
        let mut tell = |span: Span<'static>| first.extend([Span::raw("  "), span]);
        tell(Span::raw(escape(&instance.backend)));
        let queued = match app.list.queued() {
            0 => String::new(),
            n => format!(", {n} queued"),
        };
        tell(Span::raw(counted(app.list.total() as u64, "live run") + &queued));
        tell(Span::raw(counted(instance.kills_total, "kill")));
        if !instance.health_reasons.is_empty() {
            tell(paint.span(health_tone(health), escape(&instance.health_reasons.join("; "))));
        }
    }
    let mut second = Vec::new();
    for health in [Health::Critical, Health::Warning, Health::Healthy] {
        let text = format!("{} {} {health}", super::paint::symbol(health), app.list.count(health));
        second.extend([paint.span(health_tone(health), text), Span::raw("  ")]);
    }
    let reversed = if app.list.reversed { ", reversed" } else { "" };
    second.push(Span::raw(format!("by {}{reversed}", app.list.sort.as_str())));
    if app.all_users {
        second.push(Span::raw("  of all users"));
    }
    if !app.list.filter.is_empty() {
        second.push(bold(format!("  filter {:?}: {} shown", escape(&app.list.filter), app.list.len())));
    }
    vec![Line::from(first), Line::from(second)]
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What is wrong, else what is typed, else what was told, else what can be typed.
fn status(app: &App, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let columns = usize::from(area.width);
    let line = match (&app.dialog, &app.trouble, &app.told) {
        (Some(Dialog::Filter), ..) => {
            let text = format!("/{}", escape(&app.list.filter));
            let shown = from_the_end(&text, columns.saturating_sub(1));
            cursor(area, width(&shown), 0, frame);
            Line::raw(shown)
        }
        (_, Some(trouble), _) => {
            Line::from(paint.span(Tone::Bad, fit(&format!("✗ no answer: {}; asking again", escape(trouble)), columns)))
        }
        (_, _, Some(told)) => Line::from(paint.span(told.tone, fit(&told.text, columns))),
        _ => {
            let mut keys = String::new();
            for key in KEYS {
                let more = if keys.is_empty() { key.to_owned() } else { format!("  {key}") };
                if width(&keys) + width(&more) <= columns {
                    keys.push_str(&more);
                }
            }
            Line::from(paint.span(Tone::Dim, keys))
        }
    };
    write(frame.buffer_mut(), area, &[line]);
}

/// As much of the end of what is typed as has room.
fn from_the_end(text: &str, columns: usize) -> String {
    let mut shown = text;
    while width(shown) > columns {
        let mut chars = shown.chars();
        chars.next();
        shown = chars.as_str();
    }
    shown.to_owned()
}

fn cursor(area: Rect, column: usize, line: u16, frame: &mut Frame<'_>) {
    let x = area.x.saturating_add(u16::try_from(column).unwrap_or(u16::MAX));
    let y = area.y.saturating_add(line);
    if x < area.right() && y < area.bottom() {
        frame.set_cursor_position((x, y));
    }
}

fn draw_log(log: &Log, paint: Paint, screen: Rect, frame: &mut Frame<'_>) {
    let room = Areas::log_lines((screen.width, screen.height));
    let end = match (&log.over, log.is_at_its_end()) {
        (Some(why), _) => escape(why),
        (None, true) => "new lines are shown as they come".to_owned(),
        (None, false) => "End goes on with new lines".to_owned(),
    };
    let mut lines = vec![Line::from(vec![bold(format!("{}: log", log.run)), Span::raw(format!("  {end}"))])];
    lines.extend(log.shown(room).into_iter().map(Line::raw));
    write(frame.buffer_mut(), screen, &lines);
    let keys = paint.span(Tone::Dim, "Up, Down, PgUp, PgDn, Home, End, Left, Right  q back");
    let last = Rect { y: screen.bottom().saturating_sub(1), height: screen.height.min(1), ..screen };
    write(frame.buffer_mut(), last, &[Line::from(keys)]);
}

fn help() -> Vec<Line<'static>> {
    HELP.iter().map(|(key, does)| Line::from(vec![bold(format!("{key:<21}")), Span::raw(*does)])).collect()
}

/// Lines in a frame in the middle of the screen, with the cursor at the end of one of them.
fn dialog(title: &str, lines: Vec<Line<'static>>, cursor_at: Option<usize>, frame: &mut Frame<'_>) {
    let screen = frame.area();
    let least = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).saturating_add(2);
    let widest = lines.iter().map(Line::width).max().unwrap_or(0).max(width(title) + 2);
    // One more for the cursor.
    let (wide, high) = (least(widest + 1).min(screen.width), least(lines.len()).min(screen.height));
    let area = Rect {
        x: screen.x + (screen.width - wide) / 2,
        y: screen.y + (screen.height - high) / 2,
        width: wide,
        height: high,
    };
    let block = Block::bordered().title(title);
    let inside = block.inner(area);
    Clear.render(area, frame.buffer_mut());
    block.render(area, frame.buffer_mut());
    write(frame.buffer_mut(), inside, &lines);
    if let Some((n, line)) = cursor_at.and_then(|n| Some((n, lines.get(n)?))) {
        cursor(inside, line.width(), u16::try_from(n).unwrap_or(u16::MAX), frame);
    }
}

/// The columns that the lines of a dialog have.
fn room(frame: &Frame<'_>) -> usize {
    usize::from(frame.area().width).saturating_sub(4).min(70)
}

fn ask_about_kill(kill: &Kill, paint: Paint, frame: &mut Frame<'_>) {
    let room = room(frame);
    let how = match kill.mode {
        KillMode::Graceful => {
            format!("SIGTERM, {} of grace, then it is ended for good", human_duration(kill.view.spec.limits.grace))
        }
        KillMode::Force => "ended for good at once, without SIGTERM and grace".to_owned(),
    };
    let spec = &kill.view.spec;
    let name = spec.name.as_ref().map(|name| format!(" ({})", escape(name))).unwrap_or_default();
    let mut lines = vec![Line::raw(fit(&format!("{}{name}, of {}", kill.run, escape(&spec.user)), room))];
    let command = wrap(&command_line(&spec.command), room);
    lines.extend(command.into_iter().take(2).map(Line::raw));
    lines.extend(wrap(&how, room).into_iter().map(Line::raw));
    lines.push(Line::raw(""));
    let why = from_the_end(&escape(kill.reason.text()), room.saturating_sub(6));
    lines.push(Line::from(vec![bold("Why? "), Span::raw(why)]));
    let at = lines.len() - 1;
    lines.push(Line::raw(""));
    lines.push(match kill.is_asked {
        true => Line::from(vec![
            Span::styled("y", paint.style(Tone::Bad)),
            Span::raw(" ends it   "),
            bold("n"),
            Span::raw(", Esc does not   Backspace edits"),
        ]),
        false => Line::raw("Enter goes on, Esc ends nothing; the reason goes on record"),
    });
    let title = match (kill.is_asked, kill.mode) {
        (false, KillMode::Graceful) => " Kill ",
        (false, KillMode::Force) => " Kill by force ",
        (true, KillMode::Graceful) => " Kill: is that so? ",
        (true, KillMode::Force) => " Kill by force: is that so? ",
    };
    dialog(title, lines, (!kill.is_asked).then_some(at), frame);
}

fn ask_about_extension(extend: &Extend, paint: Paint, frame: &mut Frame<'_>) {
    let room = room(frame);
    let mut lines = vec![Line::raw(extend.run.to_string())];
    let rule = |(n, rule): (usize, &Rule)| {
        if n == extend.chosen { Line::from(bold(format!("> {rule}"))) } else { Line::raw(format!("  {rule}")) }
    };
    lines.extend(extend.rules.iter().enumerate().map(rule));
    lines.push(Line::raw(""));
    let time = from_the_end(&escape(extend.time.text()), room.saturating_sub(20));
    lines.push(Line::from(vec![bold("How much longer? "), Span::raw(time)]));
    let at = lines.len() - 1;
    let wrong = extend.wrong.as_ref().map(|wrong| wrap(&escape(wrong), room)).unwrap_or_default();
    lines.extend(wrong.into_iter().map(|line| Line::from(paint.span(Tone::Bad, line))));
    lines.push(Line::raw(""));
    lines.push(Line::raw("Up, Down choose, Enter extends, Esc does not"));
    dialog(" Extend ", lines, Some(at), frame);
}
