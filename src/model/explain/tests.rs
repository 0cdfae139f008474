use super::*;
use crate::model::{Access, File, FutexBy, Holder, Object, Polled, RecentCpu, ThreadSeen, UnixPeer, Wait};

fn thread(tid: u32, state: char, wait: Wait) -> ThreadSeen {
    ThreadSeen { tid, name: format!("t{tid}"), state, wchan: None, wait }
}

fn process(pid: u32, ppid: u32, name: &str, wait: Wait) -> ProcessSeen {
    ProcessSeen {
        pid,
        ppid,
        name: name.into(),
        state: 'S',
        threads: vec![thread(pid, 'S', wait)],
        threads_total: 1,
        age_usec: 900_000_000,
        ..ProcessSeen::default()
    }
}

fn call(name: &str, on: Object) -> Wait {
    Wait::Call { name: name.into(), on }
}

fn tcp(peer: &str) -> File {
    File::Tcp { local: "192.0.2.1:5000".into(), peer: Some(peer.into()), state: "ESTABLISHED".into() }
}

fn reads(file: File) -> Wait {
    call("read", Object::File { fd: 3, access: Access::Read, file })
}

fn pipe(of: &[(u32, &str)]) -> File {
    let other_end = of.iter().map(|(pid, name)| Holder { pid: *pid, name: (*name).into() }).collect();
    File::Pipe { path: None, other_end, all_seen: true }
}

fn child() -> Wait {
    call("wait4", Object::Child { pid: None })
}

fn sleep() -> Wait {
    call("nanosleep", Object::Sleep { usec: Some(5_000_000), left: false })
}

fn futex(by: Option<FutexBy>, timed: bool) -> Wait {
    call("futex", Object::Futex { private: true, timed, by })
}

fn said(processes: Vec<ProcessSeen>) -> String {
    let total = u32::try_from(processes.len()).unwrap();
    explain(&Evidence { processes, total, ..Evidence::default() }).sentence
}

#[test]
fn the_leaf_is_named_and_not_the_shells_that_wait_for_it() {
    let shells = [process(809, 1, "sh", child()), process(810, 809, "npm", child())];
    let claude = process(811, 810, "claude", reads(tcp("203.0.113.7:443")));
    assert_eq!(
        said([&shells[..], &[claude]].concat()),
        "all 3 processes sleep; claude (pid 811), for which npm (pid 810) waits, waits on a TCP read from \
         203.0.113.7:443 (fd 3, read)"
    );
}

#[test]
fn of_several_the_one_that_tells_most_is_named() {
    let told = said(vec![
        process(1, 0, "sleep", sleep()),
        process(2, 0, "agent", reads(tcp("203.0.113.7:443"))),
        process(3, 0, "cat", reads(pipe(&[(2, "agent")]))),
    ]);
    assert!(
        told.starts_with("all 3 processes sleep; agent (pid 2), for which cat (pid 3) waits, waits on a TCP"),
        "{told}"
    );
}

#[test]
fn servers_that_wait_for_an_agent_do_not_hide_what_it_waits_for() {
    // Both wait for each other's pipe, but the agent for the network as well: no circle.
    let some = vec![Polled { fd: 4, file: tcp("203.0.113.7:443") }, Polled { fd: 5, file: pipe(&[(2, "mcp")]) }];
    let agent = process(1, 0, "node", call("epoll_wait", Object::Several { total: 2, some, timed: false }));
    let server = process(2, 1, "mcp", reads(pipe(&[(1, "node")])));
    assert_eq!(
        said(vec![agent, server]),
        "both processes sleep; node (pid 1), for which mcp (pid 2) waits, waits for one of 2 descriptors: a TCP \
         connection to 203.0.113.7:443 and a pipe that mcp (pid 2) could write (epoll_wait)"
    );
}

#[test]
fn a_parent_that_reads_what_its_child_is_to_write_waits_for_the_child() {
    let some = vec![Polled { fd: 4, file: pipe(&[(2, "git")]) }, Polled { fd: 5, file: pipe(&[(2, "git")]) }];
    let parent = process(1, 0, "python3", call("poll", Object::Several { total: 2, some, timed: false }));
    let told = said(vec![parent, process(2, 1, "git", reads(File::Terminal { path: "/dev/pts/3".into() }))]);
    assert_eq!(
        told,
        "both processes sleep; git (pid 2), for which python3 (pid 1) waits, waits to read from the terminal /dev/pts/3 \
         (fd 3, read)"
    );
}

#[test]
fn processes_in_a_circle_wait_for_each_other() {
    let told = said(vec![
        process(5, 1, "a", reads(pipe(&[(5, "a"), (6, "b")]))),
        process(6, 5, "b", reads(pipe(&[(5, "a")]))),
    ]);
    assert_eq!(
        told,
        "both processes sleep; a (pid 5) and b (pid 6) wait for each other: the first waits to read from a pipe that b \
         (pid 6) and it itself could write (fd 3, read)"
    );
}

#[test]
fn one_that_computes_comes_before_all() {
    let busy = |recent, cpu_usec| {
        let mut busy = process(2, 1, "cc1", sleep());
        (busy.recent, busy.cpu_usec, busy.threads[0].state) = (recent, cpu_usec, 'R');
        busy.state = 'R';
        said(vec![process(1, 0, "make", child()), busy])
    };
    let recent = |cpu_usec| Some(RecentCpu { over_usec: 100_000, cpu_usec });
    assert_eq!(busy(recent(99_000), 0), "1 of 2 processes runs; cc1 (pid 2) computes: 99 % of a core over 100 ms");
    assert_eq!(
        busy(None, 890_000_000),
        "1 of 2 processes runs; cc1 (pid 2) computes: 98 % of a core since its start 15 min ago"
    );
    assert_eq!(busy(None, 1000), "1 of 2 processes runs; cc1 (pid 2), for which make (pid 1) waits, runs");
    assert_eq!(
        busy(recent(1000), 890_000_000),
        "1 of 2 processes runs; cc1 (pid 2), for which make (pid 1) waits, runs"
    );
}

#[test]
fn threads_that_hold_what_the_other_wants_are_a_deadlock() {
    let mut it = process(7, 1, "db", futex(Some(FutexBy::End(8)), false));
    it.threads.push(thread(8, 'S', futex(Some(FutexBy::Holder(9)), false)));
    it.threads.push(thread(9, 'S', futex(Some(FutexBy::Holder(8)), false)));
    it.threads_total = 3;
    assert_eq!(
        said(vec![it.clone()]),
        "db (pid 7) is deadlocked: thread 8 waits for a lock that thread 9 holds, and thread 9 for one that thread 8 holds \
         (futex)"
    );
    // Without owners: nobody else can wake them, as long as all of them are seen.
    it.threads.iter_mut().for_each(|t| t.wait = futex(None, false));
    assert!(said(vec![it.clone()]).contains("is deadlocked: all its 3 threads"));
    it.threads[2].wait = futex(None, true);
    assert_eq!(said(vec![it.clone()]), "db (pid 7) waits for another thread (futex)");
    it.threads[2].wait = futex(None, false);
    it.threads_total = 40;
    assert!(!said(vec![it]).contains("deadlock"));
}

#[test]
fn the_main_thread_waits_for_the_one_that_is_blocked() {
    let mut it = process(7, 1, "app", futex(Some(FutexBy::End(8)), false));
    it.threads.push(thread(8, 'S', reads(tcp("203.0.113.7:443"))));
    it.threads_total = 2;
    assert_eq!(
        said(vec![it]),
        "app (pid 7) waits on a TCP read from 203.0.113.7:443 (fd 3, read) in its thread 8, for which its main thread waits"
    );
}

#[test]
fn locks_name_who_holds_them() {
    let lock = |holders: &[(u32, &str)]| {
        let holders = holders.iter().map(|(pid, name)| Holder { pid: *pid, name: (*name).into() }).collect();
        call("flock", Object::Lock { fd: 3, path: "/var/lock/x".into(), holders })
    };
    assert_eq!(
        said(vec![process(7, 1, "apt", lock(&[(99, "dpkg")]))]),
        "apt (pid 7) waits for a lock on /var/lock/x (fd 3, flock) that dpkg (pid 99) holds"
    );
    assert!(said(vec![process(7, 1, "apt", lock(&[(99, "")]))]).ends_with("that pid 99 (gone) holds"));
    assert!(said(vec![process(7, 1, "apt", lock(&[]))]).ends_with(", whose holder is not known"));
    let told = said(vec![process(7, 1, "apt", lock(&[(8, "sh")])), process(8, 1, "sh", sleep())]);
    assert_eq!(
        told,
        "both processes sleep; sh (pid 8), whose lock on /var/lock/x apt (pid 7) waits for, sleeps for 5 s (nanosleep)"
    );
}

#[test]
fn what_cannot_be_read_is_said_and_the_rest_still_is() {
    let mut it = process(7, 1, "sudo", Wait::Unreadable);
    assert_eq!(said(vec![it.clone()]), "sudo (pid 7) waits for something that cannot be read here");
    it.threads[0].wchan = Some("do_wait".into());
    assert_eq!(said(vec![it.clone()]), "sudo (pid 7) waits for a child (kernel function do_wait)");
    it.threads[0].wchan = Some("some_new_function".into());
    assert_eq!(said(vec![it.clone()]), "sudo (pid 7) waits in the kernel function some_new_function");
    it.threads.clear();
    it.state = 'T';
    assert!(said(vec![it]).starts_with("sudo (pid 7) is stopped by a signal"));
    assert_eq!(explain(&Evidence::default()).sentence, "no process is in it");
    let unseen = Evidence { total: 3, ..Evidence::default() };
    assert_eq!(explain(&unseen).sentence, "3 processes are in it, and nothing could be read of any");
}

#[test]
fn an_uninterruptible_sleep_is_named_with_its_place() {
    let mut it = process(7, 1, "cp", call("openat", Object::Unknown));
    (it.state, it.threads[0].state) = ('D', 'D');
    it.threads[0].wchan = Some("rpc_wait_bit_killable".into());
    assert_eq!(
        said(vec![it]),
        "cp (pid 7) is in a sleep that no signal ends (state D): waits in the system call openat (kernel function \
         rpc_wait_bit_killable)"
    );
}

#[test]
fn nothing_that_a_process_chose_steers_a_terminal() {
    let nasty = "\u{1b}[2J\nrun_0 \u{202e}";
    let mut it = process(7, 1, nasty, reads(File::Path { path: format!("/{nasty}{}", "x".repeat(500)) }));
    it.command = format!("{nasty} {}", "y".repeat(500));
    it.threads.push(thread(8, 'S', call("openat", Object::Unknown)));
    it.threads[1].name = nasty.into();
    it.threads[1].wchan = Some(nasty.into());
    it.state = '\n';
    let other = process(
        8,
        7,
        nasty,
        call("flock", Object::Lock { fd: 3, path: nasty.into(), holders: vec![Holder { pid: 1, name: nasty.into() }] }),
    );
    let told = explain(&Evidence { processes: vec![it, other], total: 2, ..Evidence::default() });
    let all = [told.details.as_slice(), &[told.sentence]].concat();
    assert!(all.len() > 4, "{all:?}");
    for line in all {
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        assert!(line.chars().count() < 700, "{line}");
    }
}

#[test]
fn details_have_each_process_what_was_left_out_and_what_grew() {
    let growth = Growth {
        over_usec: 5_000_000,
        cpu_usec: Some(100_000),
        memory_bytes: Some(-2048),
        io_bytes: Some(0),
        activity_bytes: None,
    };
    let evidence = Evidence {
        processes: vec![process(1, 0, "sh", child())],
        total: 70,
        growth: Some(growth),
        ..Evidence::default()
    };
    let told = explain(&evidence);
    assert_eq!(
        told.details,
        [
            "sh (pid 1) (parent 0, state S) waits for a child (wait4); 0 µs of CPU in 15 min",
            "and 69 processes more",
            "in the last 5 s: 100 ms of CPU, 2 KiB less memory, 0 B from and to storage",
        ]
    );
    assert!(
        told.sentence.starts_with("the 1 of 70 processes that were looked at sleep; sh (pid 1)"),
        "{}",
        told.sentence
    );
}

#[test]
fn the_last_heartbeat_and_the_last_output_are_told_with_their_age() {
    let at = |secs: u64| Wall(secs * 1_000_000);
    let said = Heartbeats { last_at: Some(at(40)), status: "step 3\u{fffd}".into(), ..Heartbeats::default() };
    let output = |bytes, line: &str| LastOutput { at: at(10), bytes, line: line.into() };
    let lines = |output| signs_of_life(&said, Some(&output), at(100));
    assert_eq!(
        lines(output(9, "\u{1b}[2Jcompiling")),
        ["last heartbeat 1 min ago, status: step 3\u{fffd}", "last output 1 min 30 s ago: \\u{1b}[2Jcompiling"]
    );
    assert_eq!(lines(output(0, ""))[1], "no output so far");
    assert_eq!(lines(output(2, ""))[1], "last output 1 min 30 s ago: empty lines");
    let long = lines(output(500, &"x".repeat(200)))[1].clone();
    assert!(long.ends_with("xx…") && long.chars().count() < 160, "{long}");
    // Neither: nothing is said. One that came after the look was taken says nothing of it.
    assert_eq!(signs_of_life(&Heartbeats::default(), None, at(100)), [""; 0]);
    assert_eq!(signs_of_life(&said, None, at(39)), [""; 0]);
}

#[test]
fn the_other_end_of_a_unix_socket_is_named_where_it_is_known() {
    type Peer<'a> = (Option<&'a str>, &'a [(u32, &'a str)]);
    let says = |path: Option<&str>, peer: Option<Peer<'_>>| {
        let holder = |(pid, name): &(u32, &str)| Holder { pid: *pid, name: (*name).into() };
        let peer =
            peer.map(|(path, of)| UnixPeer { path: path.map(Into::into), holders: of.iter().map(holder).collect() });
        let file = File::Unix { path: path.map(Into::into), peer };
        said(vec![process(7, 1, "client", reads(file))])
    };
    let all: &[(u32, &str)] = &[(9, "dbus-daemon")];
    let from = "client (pid 7) waits to read from";
    assert_eq!(says(None, None), format!("{from} a unix socket without a path (fd 3, read)"));
    assert_eq!(
        says(None, Some((Some("/run/bus"), all))),
        format!("{from} a unix socket to dbus-daemon (pid 9) at /run/bus (fd 3, read)")
    );
    assert_eq!(says(None, Some((Some("@a"), &[]))), format!("{from} a unix socket to @a (fd 3, read)"));
    assert_eq!(
        says(Some("/run/bus"), Some((None, all))),
        format!("{from} the unix socket /run/bus to dbus-daemon (pid 9) (fd 3, read)")
    );
    assert_eq!(
        says(None, Some((None, &[(7, "client")]))),
        format!("{from} a unix socket whose other end it has open itself (fd 3, read)")
    );
    // Of two of the run, the one at the end is told of.
    let peer = Some(UnixPeer { path: None, holders: vec![Holder { pid: 8, name: "server".into() }] });
    let client = process(7, 1, "client", reads(File::Unix { path: None, peer }));
    let server = process(8, 1, "server", sleep());
    assert_eq!(
        said(vec![client, server]),
        "both processes sleep; server (pid 8), for which client (pid 7) waits, sleeps for 5 s (nanosleep)"
    );
}

#[test]
fn a_relay_is_told_of_only_when_it_cannot_pass_on_what_it_has() {
    let polls = || call("ppoll", Object::Several { total: 3, some: Vec::new(), timed: false });
    let relay = |copier: Wait| {
        let mut relay = process(7, 1, "guardian-relay", polls());
        relay.threads.push(thread(17, 'S', copier));
        relay
    };
    let agent = |wait: Wait| process(8, 7, "claude", wait);
    assert_eq!(
        said(vec![relay(polls()), agent(reads(tcp("203.0.113.7:443")))]),
        "both processes sleep; claude (pid 8) waits on a TCP read from 203.0.113.7:443 (fd 3, read)"
    );
    let writes = |fd, file| call("write", Object::File { fd, access: Access::Write, file });
    let stuck = relay(writes(1, pipe(&[(99, "less")])));
    let told = said(vec![stuck, agent(writes(1, pipe(&[(7, "guardian-relay")])))]);
    assert!(
        told.contains("guardian-relay (pid 7), for which claude (pid 8) waits,") && told.contains("less"),
        "{told}"
    );
}
