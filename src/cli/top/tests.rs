//! What keys do.

mod screens;

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::app::{App, Effect, Event, Told};
use super::dialog::Dialog;
use super::draw;
use super::paint::{Paint, width};
use crate::bus::client::Description;
use crate::cli::testing::finished;
use crate::model::*;

const NOW: Wall = Wall(1_800_000_000_000_000);

fn ago(secs: u64) -> Wall {
    Wall(NOW.0 - secs * 1_000_000)
}

fn id(n: u8) -> RunId {
    RunId::from_bytes([n, 0x1f, 0x73, 0x1f, 0xfe, 0x70 + n])
}

fn run(n: u8, workflow: &str, command: &[&str], age_secs: u64) -> RunView {
    let mut view = finished(Outcome::Oom);
    (view.outcome, view.finished_at, view.phase) = (None, None, Phase::Running);
    view.spec.id = id(n);
    view.spec.workflow = workflow.into();
    view.spec.command = command.iter().map(|word| (*word).to_owned()).collect();
    view.created_at = ago(age_secs);
    view.started_at = Some(ago(age_secs));
    let bytes = Some(u64::from(n) * 10_000_000);
    view.usage = Usage { memory_bytes: bytes, memory_peak_bytes: bytes, tasks: Some(n.into()), ..Usage::default() };
    view
}

/// A healthy run with a deadline, one that is stuck, one that is frozen and hostile.
fn runs() -> Vec<RunView> {
    let mut build = run(1, "builder", &["make", "-j8", "all"], 744);
    build.spec.limits.max_runtime = Some(Duration::from_secs(1200));
    build.deadlines = vec![(Rule::MaxRuntime, Wall(ago(744).0 + 1_200_000_000))];
    build.usage.cpu_usec = Some(1_000_000);
    build.heartbeats = Heartbeats { total: 120, last_at: Some(ago(3)), ..Heartbeats::default() };
    build.heartbeats.status = "step 3 of 9".into();
    let mut stuck = run(2, "lina", &["claude", "--print", "write the release notes"], 4000);
    stuck.health = Health::Critical;
    stuck.spec.name = Some("release notes".into());
    stuck.spec.limits.watch.idle_timeout = Some(Duration::from_secs(900));
    stuck.deadlines = vec![(Rule::IdleTimeout, ago(60))];
    stuck.reasons = vec![HealthReason {
        rule: Rule::IdleTimeout,
        level: Health::Critical,
        text: "idle for 15 min: all 3 processes sleep".into(),
        since: ago(60),
    }];
    let mut hostile = run(3, "default", &["sh", "-c", "printf '\x1b[2J\u{202e}'"], 90);
    (hostile.frozen, hostile.health) = (true, Health::Warning);
    hostile.heartbeats.status = "\x1b]0;title\x07 \u{9b}31m漢字".into();
    vec![build, stuck, hostile]
}

fn described() -> Box<Description> {
    Box::new(Description {
        instance: "private".into(),
        backend: "cgroupfs".into(),
        health: "healthy".into(),
        kills_total: 3,
        ..Description::default()
    })
}

fn listed(runs: Vec<RunView>, at_secs: u64) -> Event {
    Event::Listed { runs, instance: described(), now: NOW, at: Duration::from_secs(at_secs) }
}

fn app(size: (u16, u16)) -> App {
    let mut app = App::new(false, size);
    assert_eq!(app.update(listed(runs(), 0)), [Effect::Look(Some(id(2)))]);
    app
}

fn press(app: &mut App, code: KeyCode) -> Vec<Effect> {
    app.update(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn types(app: &mut App, text: &str) -> Vec<Effect> {
    text.chars().flat_map(|c| press(app, KeyCode::Char(c))).collect()
}

fn buffer(app: &App, (columns, lines): (u16, u16), color: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| draw::draw(app, Paint { color }, frame)).unwrap();
    terminal.backend().buffer().clone()
}

/// The text on the screen, without spaces at the ends of lines.
fn screen(app: &App, size: (u16, u16)) -> String {
    let buffer = buffer(app, size, false);
    let line = |y: u16| {
        let mut line = String::new();
        let mut x = 0;
        while x < size.0 {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            x += u16::try_from(width(symbol)).unwrap().max(1);
        }
        line.trim_end().to_owned()
    };
    (0..size.1).map(line).collect::<Vec<_>>().join("\n")
}

fn shown(app: &App) -> Vec<RunId> {
    (0..app.list.len()).map(|place| app.list.get(place).unwrap().view.spec.id).collect()
}

#[test]
fn the_worst_come_first_and_of_one_health_the_oldest() {
    let mut app = app((80, 24));
    assert_eq!(shown(&app), [id(2), id(3), id(1)]);
    let mut more = runs();
    more.push(run(4, "default", &["true"], 745));
    app.update(listed(more, 1));
    assert_eq!(shown(&app), [id(2), id(3), id(4), id(1)]);
}

#[test]
fn a_kill_needs_a_reason_line_and_a_yes() {
    let mut app = app((80, 24));
    assert_eq!(types(&mut app, "k"), []);
    assert_eq!(types(&mut app, "it is stuck"), []);
    assert_eq!(press(&mut app, KeyCode::Enter), []);
    assert!(screen(&app, (80, 24)).contains("Kill: is that so?"));
    for key in [KeyCode::Enter, KeyCode::Char('k'), KeyCode::Char(' '), KeyCode::Char('q')] {
        assert_eq!(press(&mut app, key), [], "{key:?} is no yes");
    }
    assert_eq!(types(&mut app, "y"), [Effect::Kill(id(2), KillMode::Graceful, "it is stuck".into())]);
    assert_eq!(app.dialog, None);
    // By force, with the reason edited, and none.
    types(&mut app, "Kx");
    press(&mut app, KeyCode::Enter);
    press(&mut app, KeyCode::Backspace);
    press(&mut app, KeyCode::Backspace);
    press(&mut app, KeyCode::Enter);
    assert_eq!(types(&mut app, "y"), [Effect::Kill(id(2), KillMode::Force, String::new())]);
}

#[test]
fn a_kill_that_is_not_confirmed_is_none() {
    for no in [KeyCode::Esc, KeyCode::Char('n')] {
        let mut app = app((80, 24));
        types(&mut app, "kwhy not");
        press(&mut app, KeyCode::Enter);
        assert_eq!(press(&mut app, no), []);
        assert_eq!((app.dialog.is_none(), app.told.as_ref().unwrap().text.as_str()), (true, "nothing was done"));
        assert_eq!(types(&mut app, "y"), []);
    }
}

#[test]
fn what_is_pasted_is_typed_and_never_done() {
    let mut app = app((80, 24));
    assert_eq!(app.update(Event::Paste("k\ry\nkfq".into())), []);
    assert_eq!(app.dialog, None);
    types(&mut app, "k");
    assert_eq!(app.update(Event::Paste("too \x1b[2Jslow\ny\n".into())), []);
    press(&mut app, KeyCode::Enter);
    assert_eq!(app.update(Event::Paste("y".into())), []);
    assert_eq!(types(&mut app, "y"), [Effect::Kill(id(2), KillMode::Graceful, "too [2Jslow".into())]);
}

#[test]
fn the_run_that_is_asked_about_is_the_one_that_is_killed() {
    let mut app = app((80, 24));
    types(&mut app, "k");
    // It is over meanwhile, and another is in its place.
    let rest: Vec<RunView> = runs().into_iter().filter(|view| view.spec.id != id(2)).collect();
    assert_eq!(app.update(listed(rest, 1)), [Effect::Look(Some(id(3)))]);
    press(&mut app, KeyCode::Enter);
    assert_eq!(types(&mut app, "y"), [Effect::Kill(id(2), KillMode::Graceful, String::new())]);
}

#[test]
fn the_selected_run_stays_selected_wherever_it_goes() {
    let mut app = app((80, 24));
    assert_eq!(press(&mut app, KeyCode::Down), [Effect::Look(Some(id(3)))]);
    assert_eq!(press(&mut app, KeyCode::End), [Effect::Look(Some(id(1)))]);
    assert_eq!(press(&mut app, KeyCode::Down), []);
    let mut worse = runs();
    worse[0].health = Health::Critical;
    worse[0].created_at = Wall(0);
    app.update(listed(worse, 1));
    assert_eq!((shown(&app)[0], app.selected), (id(1), Some(id(1))));
    assert_eq!(app.update(listed(Vec::new(), 2)), [Effect::Look(None)]);
    assert_eq!(types(&mut app, "k"), []);
    assert_eq!(app.told.as_ref().unwrap().text, "no run is selected");
}

#[test]
fn a_filter_holds_as_it_is_typed() {
    let mut app = app((80, 24));
    assert_eq!(types(&mut app, "/MAKE").last(), Some(&Effect::Look(Some(id(1)))));
    assert_eq!((shown(&app), app.dialog.clone()), (vec![id(1)], Some(Dialog::Filter)));
    // Keys are text while it is typed.
    assert_eq!(types(&mut app, "q"), [Effect::Look(None)]);
    press(&mut app, KeyCode::Backspace);
    press(&mut app, KeyCode::Enter);
    assert_eq!((shown(&app), app.list.filter.as_str(), app.dialog.clone()), (vec![id(1)], "MAKE", None));
    for (text, run) in [("release", 2), ("frozen", 3), ("step 3", 1), ("critical", 2), ("011f731ffe", 1)] {
        press(&mut app, KeyCode::Esc);
        assert_eq!(shown(&app).len(), 3);
        types(&mut app, &format!("/{text}"));
        assert_eq!(shown(&app), [id(run)], "{text}");
        press(&mut app, KeyCode::Enter);
    }
    types(&mut app, "/");
    press(&mut app, KeyCode::Esc);
    assert_eq!((shown(&app).len(), app.list.filter.as_str()), (3, ""));
}

#[test]
fn runs_are_sorted_by_each_column_and_the_other_way_round() {
    let mut app = app((80, 24));
    let orders = [
        ("time", [2, 1, 3]),
        ("deadline", [1, 2, 3]),
        ("heartbeat", [1, 2, 3]),
        ("CPU", [2, 1, 3]),
        ("memory", [3, 2, 1]),
        ("tasks", [3, 2, 1]),
        ("workflow", [1, 3, 2]),
        ("health", [2, 3, 1]),
    ];
    for (name, order) in orders {
        types(&mut app, "s");
        assert_eq!((app.list.sort.as_str(), shown(&app)), (name, order.map(id).to_vec()));
    }
    types(&mut app, "<r");
    assert_eq!((app.list.sort.as_str(), shown(&app)), ("workflow", [2, 3, 1].map(id).to_vec()));
    types(&mut app, ">");
    assert_eq!(shown(&app), [1, 3, 2].map(id));
}

#[test]
fn a_limit_is_extended_by_a_time_that_makes_sense() {
    let mut app = app((80, 24));
    press(&mut app, KeyCode::End);
    types(&mut app, "e");
    assert_eq!(press(&mut app, KeyCode::Enter), [Effect::Extend(id(1), Rule::MaxRuntime, Duration::from_secs(1800))]);
    types(&mut app, "e10");
    assert_eq!(press(&mut app, KeyCode::Enter), []);
    assert!(screen(&app, (80, 24)).contains("\"10\" is not a duration"));
    types(&mut app, "m");
    assert_eq!(press(&mut app, KeyCode::Enter), [Effect::Extend(id(1), Rule::MaxRuntime, Duration::from_secs(600))]);
    // What is judged by looks has no deadline, and can be extended too.
    press(&mut app, KeyCode::Home);
    types(&mut app, "e0s");
    assert_eq!(press(&mut app, KeyCode::Enter), []);
    assert_eq!(press(&mut app, KeyCode::Esc), []);
    types(&mut app, "e1h");
    let hour = Duration::from_secs(3600);
    assert_eq!(press(&mut app, KeyCode::Enter), [Effect::Extend(id(2), Rule::IdleTimeout, hour)]);
    press(&mut app, KeyCode::Down);
    types(&mut app, "e");
    assert!(app.told.as_ref().unwrap().text.ends_with("no limit that could be extended"));
}

#[test]
fn a_run_is_frozen_and_a_frozen_one_thawed() {
    let mut app = app((80, 24));
    assert_eq!(types(&mut app, "f"), [Effect::Freeze(id(2), true)]);
    press(&mut app, KeyCode::Down);
    assert_eq!(types(&mut app, "f"), [Effect::Freeze(id(3), false)]);
}

#[test]
fn the_log_is_read_while_it_is_shown() {
    let mut app = app((80, 24));
    types(&mut app, "l");
    assert!(app.told.as_ref().unwrap().text.contains("has no log"));
    let mut logged = runs();
    logged[1].spec.log = Some("/var/log".into());
    app.update(listed(logged, 1));
    assert_eq!(types(&mut app, "l"), [Effect::OpenLog(id(2))]);
    app.update(Event::Log(id(2), Ok(b"\x1b[32mone\x1b[0m\ntwo\x1b[2J\n".to_vec())));
    app.update(Event::Log(id(1), Ok(b"of another\n".to_vec())));
    app.update(Event::Log(id(2), Err("it is over".into())));
    let text = screen(&app, (50, 6));
    let lines: Vec<&str> = text.lines().take(3).collect();
    assert_eq!(lines, ["run_021f731ffe72: log  it is over", "one", "two\\u{1b}[2J"]);
    // Keys of the list do nothing here.
    assert_eq!(types(&mut app, "kf"), []);
    assert_eq!(types(&mut app, "q"), [Effect::CloseLog]);
    assert_eq!(types(&mut app, "q"), [Effect::Quit]);
}

#[test]
fn everybodys_runs_are_listed_for_who_may_see_them() {
    let mut app = app((80, 24));
    assert_eq!(types(&mut app, "A"), [Effect::List(true)]);
    assert_eq!(app.update(Event::Refused("you may not".into())), [Effect::List(false)]);
    assert_eq!((app.all_users, app.told.as_ref()), (false, Some(&Told::bad("you may not"))));
    // What is refused otherwise is told and no more.
    assert_eq!(app.update(Event::Refused("no".into())), []);
}

#[test]
fn ctrl_c_quits_and_ctrl_z_stops_whatever_is_asked() {
    for before in ["", "/", "k", "e", "?"] {
        let mut app = app((80, 24));
        types(&mut app, before);
        let mut control = |c| app.update(Event::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)));
        assert_eq!((control('z'), control('l')), (vec![Effect::Suspend], vec![Effect::Redraw]));
        assert_eq!(control('c'), [Effect::Quit], "{before:?}");
    }
}

#[test]
fn an_instance_that_is_gone_is_told_and_the_runs_stay_until_it_is_back() {
    let mut app = app((80, 24));
    app.update(Event::Lost("connection refused\n\x1b[2J".into(), Wall(NOW.0 + 5_000_000)));
    let text = screen(&app, (80, 24));
    assert!(text.ends_with("\n✗ no answer: connection refused\\n\\u{1b}[2J; asking again"), "{text}");
    assert!(text.contains("021f731f"));
    app.update(listed(runs(), 9));
    assert!(screen(&app, (80, 24)).contains("? help"));
}

#[test]
fn of_a_thousand_runs_those_are_on_the_screen_that_have_room() {
    let mut app = App::new(false, (80, 24));
    let many = (0..1000u64).map(|n| {
        let mut view = run(1, "default", &["true"], 1000 - n);
        view.spec.id = format!("run_{n:012x}").parse().unwrap();
        view
    });
    app.update(listed(many.collect(), 0));
    let on_screen = |app: &App| {
        let text = screen(app, (80, 24));
        text.lines().skip(3).take(8).map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((on_screen(&app).len(), app.first), (8, 0));
    press(&mut app, KeyCode::PageDown);
    assert_eq!(app.first, 1, "no further than it has to");
    press(&mut app, KeyCode::End);
    assert_eq!((app.first, app.selected), (992, Some("run_0000000003e7".parse().unwrap())));
    app.resize((120, 40));
    assert_eq!(app.first, 985);
    press(&mut app, KeyCode::Home);
    assert_eq!(app.first, 0);
}

/// Every dialog and view, of runs that say anything.
fn states(size: (u16, u16)) -> Vec<App> {
    let keys = ["", "?", "/x\u{202e}漢", "kwhy\u{9b}漢", "K", "eno", "s"];
    let mut states: Vec<App> = keys
        .iter()
        .map(|keys| {
            let mut app = app(size);
            press(&mut app, KeyCode::Down);
            let mut seen = runs().remove(2);
            seen.spec.id = id(3);
            let process =
                ProcessSeen { pid: 7, name: "\x1b[2J\u{202e}".into(), state: '\x07', ..ProcessSeen::default() };
            app.update(Event::Seen(Box::new(seen), vec![process]));
            app.update(Event::Explained(id(3), "waits \x1b[2J for \u{9b}1m".into(), Vec::new()));
            types(&mut app, keys);
            app
        })
        .collect();
    let mut confirming = app(size);
    types(&mut confirming, "k");
    press(&mut confirming, KeyCode::Enter);
    let mut extending = app(size);
    press(&mut extending, KeyCode::End);
    types(&mut extending, "e1x");
    press(&mut extending, KeyCode::Enter);
    let mut logged = app(size);
    let mut views = runs();
    views[1].spec.log = Some("/var/log".into());
    logged.update(listed(views, 1));
    types(&mut logged, "l");
    logged.update(Event::Log(id(2), Ok("a\x1b[2J\u{202e}\u{9b}漢\n".repeat(200).into_bytes())));
    let mut whole = app(size);
    press(&mut whole, KeyCode::Enter);
    press(&mut whole, KeyCode::PageDown);
    let mut lost = app(size);
    lost.update(Event::Lost("gone\x1b[2J".into(), NOW));
    let mut empty = App::new(true, size);
    empty.update(listed(Vec::new(), 0));
    states.extend([confirming, extending, logged, whole, lost, empty, App::new(false, size)]);
    states
}

#[test]
fn every_size_is_drawn_and_nothing_from_outside_steers_the_terminal() {
    let widths = [0, 1, 2, 3, 5, 8, 13, 20, 21, 34, 49, 50, 69, 70, 75, 76, 80, 109, 110, 120, 300];
    for columns in widths {
        for lines in [0, 1, 2, 3, 4, 7, 8, 9, 14, 15, 16, 24, 40, 100] {
            for app in states((columns, lines)) {
                let text = screen(&app, (columns, lines));
                assert!(!text.chars().any(|c| c != '\n' && is_unsafe(c)), "{text:?}");
            }
        }
    }
}

#[test]
fn without_colour_there_is_none_and_with_it_the_words_are_the_same() {
    let size = (80, 24);
    for app in states(size) {
        let (plain, colored) = (buffer(&app, size, false), buffer(&app, size, true));
        let is_colored =
            |buffer: &Buffer| buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        assert!(!is_colored(&plain));
        let text = |buffer: &Buffer| buffer.content().iter().map(|cell| cell.symbol().to_owned()).collect::<String>();
        assert_eq!(text(&plain), text(&colored));
    }
    assert!(buffer(&app(size), size, true).content().iter().any(|cell| cell.fg == Color::Red));
}
