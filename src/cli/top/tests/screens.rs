//! How it looks: literal screens, as a person would see them.

use super::*;

/// The view with the stuck run selected, of which everything is known.
fn full(size: (u16, u16)) -> App {
    let mut app = app(size);
    let mut later = runs();
    later[0].usage.cpu_usec = Some(3_000_000);
    app.update(listed(later.clone(), 5));
    later[0].usage.cpu_usec = Some(10_250_000);
    app.update(listed(later.clone(), 10));
    let process = |pid, ppid, name: &str, state, wchan: Option<&str>| ProcessSeen {
        pid,
        ppid,
        name: name.into(),
        state,
        wchan: wchan.map(str::to_owned),
        ..ProcessSeen::default()
    };
    let processes = vec![
        process(810, 1, "npm", 'S', Some("do_wait")),
        process(811, 810, "claude", 'S', Some("sk_wait_data")),
        process(812, 811, "rg", 'S', Some("pipe_read")),
        process(813, 810, "\x1b[2J", 'Z', None),
    ];
    app.update(Event::Seen(Box::new(later.remove(1)), processes));
    let sentence = "all 3 processes sleep; claude (pid 811), for which npm (pid 810) waits, waits on a TCP read from \
                    203.0.113.7:443 (fd 5, recvfrom)";
    let sample = |n: u64| UsageSample {
        at: ago(300 - n * 5),
        usage: Usage {
            cpu_usec: Some(n * n * 40_000),
            memory_bytes: Some(10_000_000 + n % 7 * 1_000_000),
            ..Usage::default()
        },
        ..UsageSample::default()
    };
    app.update(Event::Explained(id(2), sentence.into(), (0..60).map(sample).collect()));
    app
}

#[test]
fn the_list_and_the_worst_run_at_80_columns() {
    let app = full((80, 24));
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  3 live runs  3 kills
✗ 1 critical  ! 1 warning  ✓ 1 healthy  by health
   RUN      WORKFLOW PHASE      TIME DEADLINE  BEAT CPU%   MEM TASKS STATUS
>✗ 021f731f lina     running    1h6m -            -    - 19.1M     2 claude --p…
 ! 031f731f default  frozen    1m30s -            -    - 28.6M     3 \\u{1b}]0;t…
 ✓ 011f731f builder  running  12m24s ▓▓░░  62%   3s  145  9.5M     1 step 3 of 9





─ run_021f731ffe72 (release notes) ─────────────────────────────────────────────
lina     running, for 1 h 6 min, of root          CPU           - ▆▆▇▇▇▇▇▇▇▇████
health   ✗ critical: idle for 15 min: all 3       memory    19.1M ███▆▆▇▇███▆▆▇▇
         processes sleep                          tasks         2, 19.1M at most
explain  all 3 processes sleep; claude (pid       810 npm S do_wait
         811), for which npm (pid 810) waits,     ├─ 811 claude S sk_wait_data
         waits on a TCP read from 203.0.113.7:4…  │  └─ 812 rg S pipe_read
limits   idle_timeout 15 min, warn, is over       └─ 813 \\u{1b}[2J Z
command  claude --print 'write the release
         notes'
in       /
held by  cgroupfs
? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (80, 24)), expected);
}

/// A run that waits for its turn, beside the one that it waits for.
fn waiting(size: (u16, u16)) -> App {
    let mut queued = run(4, "builder", &["make", "test"], 12);
    (queued.phase, queued.started_at, queued.usage) = (Phase::Queued, None, Usage::default());
    let why = "1 builder run is running of 1 allowed".into();
    queued.queued = Some(Queued { place: 9, position: 2, of: 5, why });
    queued.spec.limits.queue_timeout = Some(Duration::from_secs(120));
    queued.deadlines = vec![(Rule::QueueTimeout, Wall(NOW.0 + 108_000_000))];
    let mut app = App::new(false, size);
    app.update(listed(vec![runs().remove(0), queued], 0));
    press(&mut app, KeyCode::End);
    app
}

#[test]
fn a_queued_run_tells_its_place_and_what_it_waits_for() {
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  2 live runs, 1 queued  3 kil
✗ 0 critical  ! 0 warning  ✓ 2 healthy  by health
   RUN      WORKFLOW PHASE      TIME DEADLINE  BEAT CPU%   MEM TASKS STATUS
 ✓ 011f731f builder  running  12m24s ▓▓░░  62%   3s    -  9.5M     1 step 3 of 9
>✓ 041f731f builder  queued      12s ▓░░░  10%    -    -     -     - 2nd of 5: …






─ run_041f731ffe74 ─────────────────────────────────────────────────────────────
builder  queued, for 12 s, of root                CPU           -
queue    2nd of 5: 1 builder run is running of 1  memory        -
         allowed                                  tasks         -
health   ✓ healthy
limits   queue_timeout 2 min, gives it up in 1
         min 48 s
command  make test
in       /
held by  cgroupfs


? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&waiting((80, 24)), (80, 24)), expected);
    let wide = screen(&waiting((120, 24)), (120, 24));
    let line = wide.lines().find(|line| line.starts_with('>')).unwrap();
    assert!(line.contains(" queued 2/5 ") && line.contains(" 2nd of 5: 1 builder run"), "{line}");
}

#[test]
fn the_list_and_the_worst_run_at_120_columns() {
    let app = full((120, 40));
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  3 live runs  3 kills
✗ 1 critical  ! 1 warning  ✓ 1 healthy  by health
 HEALTH     RUN              WORKFLOW   PHASE          TIME DEADLINE   BEAT CPU% MEMORY TASKS STATUS, COMMAND
>✗ critical run_021f731ffe72 lina       running        1h6m -             -    -  19.1M     2 claude --print 'write the…
 ! warning  run_031f731ffe73 default    frozen        1m30s -             -    -  28.6M     3 \\u{1b}]0;title\\u{7} \\u{9b…
 ✓ healthy  run_011f731ffe71 builder    running      12m24s ▓▓▓░░  62%   3s  145   9.5M     1 step 3 of 9












─ run_021f731ffe72 (release notes) ─────────────────────────────────────────────────────────────────────────────────────
lina     running, for 1 h 6 min, of root                                  CPU           - ▄▄▅▅▅▅▅▅▅▅▆▆▆▆▆▆▆▆▇▇▇▇▇▇▇▇████
health   ✗ critical: idle for 15 min: all 3 processes sleep               memory    19.1M ▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇
explain  all 3 processes sleep; claude (pid 811), for which npm (pid      tasks         2, 19.1M at most
         810) waits, waits on a TCP read from 203.0.113.7:443 (fd 5,      810 npm S do_wait
         recvfrom)                                                        ├─ 811 claude S sk_wait_data
limits   idle_timeout 15 min, warn, is over                               │  └─ 812 rg S pipe_read
command  claude --print 'write the release notes'                         └─ 813 \\u{1b}[2J Z
in       /
held by  cgroupfs











? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (120, 40)), expected);
}

#[test]
fn a_hostile_run_is_shown_as_it_is_and_steers_nothing() {
    let app = {
        let mut app = full((80, 24));
        press(&mut app, KeyCode::Down);
        app
    };
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  3 live runs  3 kills
✗ 1 critical  ! 1 warning  ✓ 1 healthy  by health
   RUN      WORKFLOW PHASE      TIME DEADLINE  BEAT CPU%   MEM TASKS STATUS
 ✗ 021f731f lina     running    1h6m -            -    - 19.1M     2 claude --p…
>! 031f731f default  frozen    1m30s -            -    - 28.6M     3 \\u{1b}]0;t…
 ✓ 011f731f builder  running  12m24s ▓▓░░  62%   3s  145  9.5M     1 step 3 of 9





─ run_031f731ffe73 ─────────────────────────────────────────────────────────────
default  running, frozen, for 1 min 30 s, of      CPU           -
         root                                     memory    28.6M
health   ! warning                                tasks         3, 28.6M at most
status   \\u{1b}]0;title\\u{7} \\u{9b}31m漢字
command  sh -c 'printf
         '\\''\\u{1b}[2J\\u{202e}'\\'''
in       /
held by  cgroupfs



? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (80, 24)), expected);
}

#[test]
fn a_kill_is_asked_about() {
    let app = {
        let mut app = full((80, 24));
        types(&mut app, "ksuperseded by #214");
        app
    };
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  3 live runs  3 kills
✗ 1 critical  ! 1 warning  ✓ 1 healthy  by health
   RUN      WORKFLOW PHASE      TIME DEADLINE  BEAT CPU%   MEM TASKS STATUS
>✗ 021f731f lina     running    1h6m -            -    - 19.1M     2 claude --p…
 ! 031f731f default  frozen    1m30s -            -    - 28.6M     3 \\u{1b}]0;t…
 ✓ 011f731f builder  running  12m24s ▓▓░░  62%   3s  145  9.5M     1 step 3 of 9

         ┌ Kill ─────────────────────────────────────────────────────┐
         │run_021f731ffe72 (release notes), of root                  │
         │claude --print 'write the release notes'                   │
         │SIGTERM, 10 s of grace, then it is ended for good          │
─ run_021│                                                           │──────────
lina     │Why? superseded by #214                                    │▇▇▇▇▇▇████
health   │                                                           │▆▇▇███▆▆▇▇
         │Enter goes on, Esc ends nothing; the reason goes on record │1M at most
explain  └───────────────────────────────────────────────────────────┘
         811), for which npm (pid 810) waits,     ├─ 811 claude S sk_wait_data
         waits on a TCP read from 203.0.113.7:4…  │  └─ 812 rg S pipe_read
limits   idle_timeout 15 min, warn, is over       └─ 813 \\u{1b}[2J Z
command  claude --print 'write the release
         notes'
in       /
held by  cgroupfs
? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (80, 24)), expected);
}

#[test]
fn a_kill_is_asked_about_twice() {
    let app = {
        let mut app = full((80, 24));
        types(&mut app, "Ksuperseded by #214");
        press(&mut app, KeyCode::Enter);
        app
    };
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  3 live runs  3 kills
✗ 1 critical  ! 1 warning  ✓ 1 healthy  by health
   RUN      WORKFLOW PHASE      TIME DEADLINE  BEAT CPU%   MEM TASKS STATUS
>✗ 021f731f lina     running    1h6m -            -    - 19.1M     2 claude --p…
 ! 031f731f default  frozen    1m30s -            -    - 28.6M     3 \\u{1b}]0;t…
 ✓ 011f731f builder  running  12m24s ▓▓░░  62%   3s  145  9.5M     1 step 3 of 9

              ┌ Kill by force: is that so? ──────────────────────┐
              │run_021f731ffe72 (release notes), of root         │
              │claude --print 'write the release notes'          │
              │ended for good at once, without SIGTERM and grace │
─ run_021f731f│                                                  │──────────────
lina     runni│Why? superseded by #214                           │▆▆▇▇▇▇▇▇▇▇████
health   ✗ cri│                                                  │███▆▆▇▇███▆▆▇▇
         proce│y ends it   n, Esc does not   Backspace edits     │ 19.1M at most
explain  all 3└──────────────────────────────────────────────────┘t
         811), for which npm (pid 810) waits,     ├─ 811 claude S sk_wait_data
         waits on a TCP read from 203.0.113.7:4…  │  └─ 812 rg S pipe_read
limits   idle_timeout 15 min, warn, is over       └─ 813 \\u{1b}[2J Z
command  claude --print 'write the release
         notes'
in       /
held by  cgroupfs
? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (80, 24)), expected);
}

#[test]
fn an_extension_is_asked_about() {
    let app = {
        let mut app = full((80, 24));
        press(&mut app, KeyCode::End);
        types(&mut app, "e10");
        press(&mut app, KeyCode::Enter);
        app
    };
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  3 live runs  3 kills
✗ 1 critical  ! 1 warning  ✓ 1 healthy  by health
   RUN      WORKFLOW PHASE      TIME DEADLINE  BEAT CPU%   MEM TASKS STATUS
 ✗ 021f731f lina     running    1h6m -            -    - 19.1M     2 claude --p…
 ! 031f731f default  frozen    1m30s -            -    - 28.6M     3 \\u{1b}]0;t…
>✓ 011f731f builder  running  12m24s ▓▓░░  62%   3s  145  9.5M     1 step 3 of 9

    ┌ Extend ──────────────────────────────────────────────────────────────┐
    │run_011f731ffe71                                                      │
    │> max_runtime                                                         │
    │                                                                      │
─ ru│How much longer? 10                                                   │────
buil│\"10\" is not a duration (time unit needed, for example 10sec or 10ms): │
heal│write it as 30s, 10m or 1h30m                                         │
beat│                                                                      │ost
stat│Up, Down choose, Enter extends, Esc does not                          │
limi└──────────────────────────────────────────────────────────────────────┘
         min 36 s
command  make -j8 all
in       /
held by  cgroupfs


? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (80, 24)), expected);
}

#[test]
fn the_keys_are_told() {
    let app = {
        let mut app = full((80, 24));
        types(&mut app, "?");
        app
    };
    let expected = "\
guardian top  private instance ✓ healthy  cgroupfs  3 live runs  3 kills
✗ ┌ Keys ────────────────────────────────────────────────────────────────────┐
  │Up, Down, PgUp, PgDn select a run                                         │
>✗│Home, End            the first, the last                                  │p…
 !│Enter                all about the run; Esc goes back                     │t…
 ✓│k                    kill: SIGTERM, grace, then for good; asks why        │ 9
  │K                    kill by force: for good at once; asks why            │
  │f                    freeze, or thaw                                      │
  │e                    extend a limit                                       │
  │l                    the log of a detached run                            │
  │/                    filter by a text; Esc takes it back                  │
─ │s, >, <              sort by the next, the next, the one before           │──
li│r                    the other way round                                  │██
he│A                    everybody's runs, or your own                        │▇▇
  │Ctrl-L, Ctrl-Z       draw anew, stop until fg                             │st
ex│q, Ctrl-C            quit                                                 │
  │                                                                          │
  │✗ ! ✓                health: critical, warning, healthy                   │
li│DEADLINE             how much is over of the time after which it is ended │
co│BEAT                 since its last heartbeat                             │
  │CPU%                 of one core, over ten seconds                        │
in└──────────────────────────────────────────────────────────────────────────┘
held by  cgroupfs
? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (80, 24)), expected);
}

#[test]
fn all_about_a_run() {
    let app = {
        let mut app = full((80, 24));
        press(&mut app, KeyCode::Enter);
        app
    };
    let expected = "\
─ run_021f731ffe72 (release notes) ─────────────────────────────────────────────
lina     running, for 1 h 6 min, of root
health   ✗ critical: idle for 15 min: all 3 processes sleep
explain  all 3 processes sleep; claude (pid 811), for which npm (pid 810) waits,
         waits on a TCP read from 203.0.113.7:443 (fd 5, recvfrom)
limits   idle_timeout 15 min, warn, is over
command  claude --print 'write the release notes'
in       /
held by  cgroupfs
CPU           - ▁▁▁▁▁▁▁▁▂▂▂▂▂▂▂▂▃▃▃▃▃▃▃▃▄▄▄▄▄▄▄▅▅▅▅▅▅▅▅▆▆▆▆▆▆▆▆▇▇▇▇▇▇▇▇████
memory    19.1M ▆▆▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇███▆▆▇▇
tasks         2, 19.1M at most
810 npm S do_wait
├─ 811 claude S sk_wait_data
│  └─ 812 rg S pipe_read
└─ 813 \\u{1b}[2J Z







? help  q quit  / filter  s sort  k kill  f freeze  e extend  l logs  Enter more";
    assert_eq!(screen(&app, (80, 24)), expected);
}

#[test]
fn a_small_terminal_has_the_list_alone() {
    let app = full((46, 9));
    let expected = "\
guardian top  private instance ✓ healthy  cgro
✗ 1 critical  ! 1 warning  ✓ 1 healthy  by hea
   RUN      PHASE      TIME
>✗ 021f731f running    1h6m
 ! 031f731f frozen    1m30s
 ✓ 011f731f running  12m24s


? help  q quit  / filter  s sort  k kill";
    assert_eq!(screen(&app, (46, 9)), expected);
}
