use super::event::tests::row;
use super::event::{Event, notice};
use super::outbox::*;
use super::*;
use crate::model::{EventKind, Wall};
use serde_json::json;

const SECOND: u64 = 1_000_000;

fn config(route: &str, delivery: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("n.toml");
    let text =
        format!("{delivery}[channel.a]\ntype = \"exec\"\ncommand = [\"/x\"]\n[[route]]\nchannels = [\"a\"]\n{route}");
    std::fs::write(&file, text).unwrap();
    Config::load(&file).unwrap()
}

fn health(seq: u64, to: &str) -> event::Notice {
    notice(&row(seq, EventKind::HealthChanged, json!({ "to": to })), None, "h").unwrap()
}

#[test]
fn the_cursor_is_kept_with_what_is_to_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("", "");
    let cursor = Cursor { seq: 9, hash: "ab".into() };
    {
        let mut outbox = Outbox::open(dir.path()).unwrap();
        assert_eq!(outbox.cursor().unwrap(), None);
        outbox.take(&config, &[health(8, "warning"), health(9, "critical")], Some(&cursor), &[], Wall(1)).unwrap();
    }
    let mut outbox = Outbox::open_or_begin(dir.path()).unwrap();
    assert_eq!(outbox.cursor().unwrap(), Some(cursor));
    let waiting = outbox.waiting("a").unwrap();
    let told: Vec<_> = waiting.iter().map(|w| outbox.notice(w.id).unwrap().unwrap().0.event).collect();
    assert_eq!(told, [Event::Warning, Event::Critical]);
    outbox.delivered("a", &[waiting[0].id], None).unwrap();
    outbox.failed("a", &[(waiting[1].id, Wall(77))]).unwrap();
    let left = outbox.waiting("a").unwrap();
    assert_eq!((left.len(), left[0].attempts, left[0].not_before), (1, 1, Wall(77)));
    outbox.give_up("a", &[left[0].id]).unwrap();
    let (waiting, counts) = outbox.summary().unwrap();
    assert_eq!((waiting, counts["delivered"], counts["failed"], counts["given_up"]), (0, 1, 1, 1));
}

#[test]
fn the_same_is_told_once_within_its_window() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("dedup_window = \"10s\"\n", "");
    let mut outbox = Outbox::open(dir.path()).unwrap();
    // By the second: told, repeated, another event, told again.
    let notices = [health(100, "warning"), health(109, "warning"), health(109, "critical"), health(110, "warning")];
    let taken = outbox.take(&config, &notices, None, &[], Wall(1)).unwrap();
    assert_eq!((taken.queued, taken.repeated), (3, 1));
}

#[test]
fn a_full_outbox_lets_go_of_the_oldest_that_is_not_critical() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("dedup_window = \"0s\"\n", "[delivery]\noutbox_max = 10\n");
    let mut outbox = Outbox::open(dir.path()).unwrap();
    let notices: Vec<_> = (1..=12).map(|seq| health(seq, if seq == 1 { "critical" } else { "warning" })).collect();
    outbox.take(&config, &notices, None, &[], Wall(1)).unwrap();
    let ids: Vec<_> = outbox.waiting("a").unwrap().iter().map(|w| w.id).collect();
    assert_eq!(ids, [1, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(outbox.summary().unwrap().1["dropped"], 2);
}

#[test]
fn what_is_critical_takes_along_what_quiet_hours_hold_of_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("quiet_hours = \"00:00-23:59\"\n", "");
    let mut outbox = Outbox::open(dir.path()).unwrap();
    let noon = 1_700_000_000 * SECOND;
    outbox.take(&config, &[health(1, "warning")], None, &[], Wall(noon)).unwrap();
    let held = outbox.waiting("a").unwrap()[0].held_until;
    assert!(held > Wall(noon), "{held:?}");
    outbox.take(&config, &[health(2, "critical")], None, &[], Wall(noon + 1)).unwrap();
    assert!(outbox.waiting("a").unwrap().iter().all(|w| w.held_until == Wall(0)));
}

#[test]
fn an_unreadable_outbox_is_set_aside_and_only_one_process_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notify.db"), vec![b'x'; 8192]).unwrap();
    let outbox = Outbox::open_or_begin(dir.path()).unwrap();
    assert_eq!(outbox.summary().unwrap().0, 0);
    let _lock = lock(dir.path()).unwrap();
    assert!(lock(dir.path()).unwrap_err().to_string().contains("another guardian-notify"));
}
