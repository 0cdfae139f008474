//! The list of runs: the columns that have room, and a line for each run that is on the screen.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::app::App;
use super::order::Row;
use super::paint::{Paint, bar, bold, brief, briefest, cell, symbol, write};
use crate::cli::list::unknown;
use crate::cli::output::{Tone, command_line, health_tone, human_size};
use crate::model::{RunId, Wall, escape};

/// What a column has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    Health,
    Run,
    Workflow,
    Phase,
    Time,
    Deadline,
    Beat,
    Cpu,
    Memory,
    Tasks,
    /// The status, what a queued run waits for, or the command; takes the rest of the line.
    Status,
}

/// A heading, and a width; none takes the rest.
type Column = (Has, &'static str, usize);

const WIDE: [Column; 11] = [
    (Has::Health, "HEALTH", 10),
    (Has::Run, "RUN", 16),
    (Has::Workflow, "WORKFLOW", 10),
    (Has::Phase, "PHASE", 12),
    (Has::Time, "TIME", 6),
    (Has::Deadline, "DEADLINE", 10),
    (Has::Beat, "BEAT", 4),
    (Has::Cpu, "CPU%", 4),
    (Has::Memory, "MEMORY", 6),
    (Has::Tasks, "TASKS", 5),
    (Has::Status, "STATUS, COMMAND", 0),
];
/// For 80 columns: the health by its symbol, which the header tells, and the beginning of the id, which commands take too.
const NARROW: [Column; 11] = [
    (Has::Health, "", 1),
    (Has::Run, "RUN", 8),
    (Has::Workflow, "WORKFLOW", 8),
    (Has::Phase, "PHASE", 8),
    (Has::Time, "TIME", 6),
    (Has::Deadline, "DEADLINE", 9),
    (Has::Beat, "BEAT", 4),
    (Has::Cpu, "CPU%", 4),
    (Has::Memory, "MEM", 5),
    (Has::Tasks, "TASKS", 5),
    (Has::Status, "STATUS", 0),
];
const NARROWER: [Column; 7] = [
    (Has::Health, "", 1),
    (Has::Run, "RUN", 8),
    (Has::Workflow, "WORKFLOW", 8),
    (Has::Phase, "PHASE", 8),
    (Has::Time, "TIME", 6),
    (Has::Deadline, "ENDS", 4),
    (Has::Status, "STATUS", 0),
];
const NARROWEST: [Column; 4] =
    [(Has::Health, "", 1), (Has::Run, "RUN", 8), (Has::Phase, "PHASE", 8), (Has::Time, "TIME", 6)];

fn columns(width: u16) -> &'static [Column] {
    match width {
        110.. => &WIDE,
        76..110 => &NARROW,
        50..76 => &NARROWER,
        _ => &NARROWEST,
    }
}

/// Draws the runs that have room. No other is looked at.
pub fn draw(app: &App, paint: Paint, area: Rect, buffer: &mut Buffer) {
    let columns = columns(area.width);
    let headings: Vec<String> =
        columns.iter().map(|(has, heading, width)| cell(heading, sized(*width, area), is_number(*has))).collect();
    let mut lines = vec![Line::from(bold(format!(" {}", headings.join(" "))))];
    let room = usize::from(area.height.saturating_sub(1));
    for place in app.first..app.first.saturating_add(room) {
        let Some(row) = app.list.get(place) else { break };
        let is_selected = app.selected == Some(row.view.spec.id);
        let mut line = line(row, app.now, columns, area, paint);
        line.spans.insert(0, Span::raw(if is_selected { ">" } else { " " }));
        if is_selected {
            line.style = Style::new().add_modifier(Modifier::REVERSED);
        }
        lines.push(line);
    }
    if app.list.len() == 0 {
        let filter = escape(&app.list.filter);
        let text = if filter.is_empty() { " no live runs".to_owned() } else { format!(" no live run has {filter:?}") };
        lines.push(Line::from(paint.span(Tone::Dim, text)));
    }
    write(buffer, area, &lines);
}

/// The rest of the line is as wide as the screen: it is cut there.
fn sized(width: usize, area: Rect) -> usize {
    if width == 0 { area.width.into() } else { width }
}

fn is_number(has: Has) -> bool {
    matches!(has, Has::Time | Has::Beat | Has::Cpu | Has::Memory | Has::Tasks)
}

fn line(row: &Row, now: Wall, columns: &[Column], area: Rect, paint: Paint) -> Line<'static> {
    let mut spans = Vec::new();
    for (has, _, width) in columns {
        if !spans.is_empty() {
            spans.push(Span::raw(" "));
        }
        let tone = match has {
            Has::Health => health_tone(row.view.health),
            Has::Deadline if row.used.is_some_and(|used| used.percent >= 80) => Tone::Warning,
            _ => Tone::Plain,
        };
        let taken: usize = spans.iter().map(|span: &Span<'_>| span.width()).sum();
        let width = if *width == 0 { usize::from(area.width).saturating_sub(taken + 1) } else { *width };
        spans.push(paint.span(tone, cell(&text(row, *has, width, now), width, is_number(*has))));
    }
    Line::from(spans)
}

fn text(row: &Row, has: Has, width: usize, now: Wall) -> String {
    let v = &row.view;
    let since = |at: Wall| Duration::from_micros(now.0.saturating_sub(at.0));
    match has {
        Has::Health if width == 1 => symbol(v.health).to_owned(),
        Has::Health => format!("{} {}", symbol(v.health), v.health),
        Has::Run => short_id(v.spec.id, width),
        Has::Workflow => escape(&v.spec.workflow),
        Has::Phase if v.frozen => "frozen".to_owned(),
        Has::Phase => match v.queued.as_ref().map(|q| format!("{} {}/{}", v.phase, q.position, q.of)) {
            Some(place) if place.len() <= width => place,
            _ => v.phase.to_string(),
        },
        // What was queued has not run for so long.
        Has::Time => brief(since(v.started_at.unwrap_or(v.created_at))),
        Has::Deadline => match row.used {
            // Four for the number and its sign.
            Some(used) if width > 5 => format!("{} {:>3}%", bar(used.percent, width - 5), used.percent),
            Some(used) => format!("{}%", used.percent),
            None => unknown(),
        },
        Has::Beat => v.heartbeats.last_at.map_or_else(unknown, |at| briefest(since(at))),
        Has::Cpu => row.cpu_percent.map_or_else(unknown, |percent| percent.to_string()),
        Has::Memory => v.usage.memory_bytes.map_or_else(unknown, human_size),
        Has::Tasks => v.usage.tasks.map_or_else(unknown, |tasks| tasks.to_string()),
        Has::Status => match &v.queued {
            Some(queued) => format!("{}: {}", queued.turn(), escape(&queued.why)),
            None if v.heartbeats.status.is_empty() => command_line(&v.spec.command),
            None => escape(&v.heartbeats.status),
        },
    }
}

/// An id, or the beginning of its digits.
fn short_id(run: RunId, width: usize) -> String {
    let id = run.to_string();
    if id.len() <= width {
        return id;
    }
    id.strip_prefix(RunId::PREFIX).unwrap_or(&id).chars().take(width).collect()
}
