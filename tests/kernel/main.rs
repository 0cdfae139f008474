//! The hands, on the real kernel: real processes in real cgroups. Needs root (or a delegated cgroup) and a writable
//! cgroup2. Where it cannot run it says so loudly, and fails if `CI=true`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guardian::daemon::host::{Host, HostOptions};
use guardian::kernel::{Kernel, KernelError, Notice, Role, mount, process};
use guardian::launch::cgroupfs::{CgroupTree, Options};
use guardian::launch::mark::Owner;
use guardian::model::{CgroupIdentity, ContainerId, ExitStatus, ProcessId, Resources, RunId};

use rig::{PATIENCE, Rig, spec, until};

/// It is made by the main thread, which reports what fails, and used by the engine's.
const _: fn(Host) -> Box<dyn Send> = |host| Box::new(host);

/// Kills a script's whole tree and proves that nothing is left.
fn is_killed_whole(name: &str, script: &str, processes: u32, fallback: bool) {
    let Some(mut rig) = Rig::new(fallback) else { return };
    // No `touch`, which would be counted while it ends.
    let (_, cgroup, main) = rig.launch(&format!("{script}\n: >ready; while :; do sleep 600; done"));
    let ready = rig.tmp.path().join("ready");
    until(name, || ready.exists() && rig.pids(&cgroup) >= processes);
    let started = Instant::now();
    let killed = rig.host.kill(&cgroup).unwrap();
    assert!(killed >= processes && killed < 2 * processes, "{name}: {killed} of {processes}: none is counted twice");
    rig.until_empty(&cgroup, |host, cgroup| drop(host.kill(cgroup)));
    println!("{name}, fallback {fallback}: {killed} processes, empty after {:?}", started.elapsed());
    assert_eq!(rig.status(&main), Some(ExitStatus::Signaled(9)), "{name}");
    rig.remove(&cgroup);
    until("nothing is left", || rig.marked().is_empty());
    assert!(matches!(rig.host.populated(&cgroup), Err(KernelError::Gone { .. })));
}

macro_rules! killed_whole {
    ($($name:ident: $processes:literal, $script:literal;)*) => { $(
        mod $name {
            #[test]
            fn by_cgroup_kill() {
                super::is_killed_whole(stringify!($name), $script, $processes, false);
            }

            #[test]
            fn by_the_fallback() {
                super::is_killed_whole(stringify!($name), $script, $processes, true);
            }
        }
    )* };
}

killed_whole! {
    a_tree_that_ignores_sigterm: 4, "trap '' TERM HUP INT; sleep 600 & sleep 600 & (sleep 600 & wait) &";
    daemons_of_two_forks_and_setsid: 4, "for i in 1 2 3; do setsid sh -c '(setsid sleep 600 &)' & done; wait";
    a_stopped_process: 3, "sleep 600 & kill -STOP $!";
    a_process_in_a_sub_cgroup: 3,
        "mkdir -p $CG/a/b; sh -c 'echo $$ > $CG/a/b/cgroup.procs; exec sleep 600' & \
         until grep -q . $CG/a/b/cgroup.procs; do :; done";
    a_process_in_a_frozen_sub_cgroup: 3,
        "mkdir $CG/a; sleep 600 & echo $! > $CG/a/cgroup.procs; echo 1 > $CG/a/cgroup.freeze";
    a_process_in_a_threaded_sub_cgroup: 3,
        "mkdir $CG/a; echo threaded > $CG/a/cgroup.type; sleep 600 & echo $! > $CG/a/cgroup.procs";
    // The kernel lets nobody do so with a cgroup that anything is in, or where such as memory is controlled.
    a_run_that_makes_its_own_root_threaded: 3,
        "sleep 600 & a=$!; sleep 600 & b=$!; for p in $a $b $$; do echo $p > ${CG%/guardian-tests/*}/cgroup.procs; done; \
         for c in memory io hugetlb rdma misc; do echo -$c > $CG/../cgroup.subtree_control; done 2>/dev/null; \
         echo threaded > $CG/cgroup.type; for p in $a $b $$; do echo $p > $CG/cgroup.procs; done; \
         grep -q threaded $CG/cgroup.type || exit 9";
    a_fork_storm: 150,
        "for i in $(seq 150); do sleep 600 & done; for i in 1 2 3 4; do (while :; do sh -c :; sleep 0 & done) & done";
}

#[test]
fn sigterm_ends_stopped_and_frozen_processes_too() {
    let Some(mut rig) = Rig::new(false) else { return };
    let script = "sleep 600 & kill -STOP $!; mkdir $CG/a; sleep 600 & echo $! > $CG/a/cgroup.procs; \
                  echo 1 > $CG/a/cgroup.freeze; setsid sleep 600 & touch ready; exec sleep 600";
    let (run, cgroup, main) = rig.launch(script);
    let ready = rig.tmp.path().join("ready");
    until("ready", || ready.exists() && rig.pids(&cgroup) == 4);
    rig.host.freeze(&cgroup, true).unwrap();
    assert_eq!(rig.host.terminate(&cgroup).unwrap(), 4);
    let mut exits = 0;
    let deadline = Instant::now() + PATIENCE;
    while exits == 0 || rig.host.populated(&cgroup).unwrap() {
        assert!(Instant::now() < deadline, "{:?}", rig.host.evidence(&cgroup, PATIENCE));
        let notices = rig.host.wait(Some(Duration::from_millis(100))).unwrap();
        exits += notices.iter().filter(|n| **n == Notice::ProcessExited(run, Role::Main)).count();
    }
    assert_eq!(exits, 1);
    assert_eq!(rig.status(&main), Some(ExitStatus::Signaled(15)));
    rig.remove(&cgroup);
}

#[test]
fn the_command_runs_contained_and_its_counters_and_output_are_seen() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (_, mut cgroup) = rig.cgroup();
    let exec = rig.exec(&["sh", "-c", "cat /proc/self/cgroup; ls /proc/self/fd; sleep 600"], &cgroup);
    let mut main = rig.host.spawn(&exec, &mut cgroup).unwrap().unwrap();
    rig.host.attach(&mut cgroup, &mut main).unwrap();
    assert!(rig.host.populated(&cgroup).unwrap());
    assert!(!rig.host.has_output(&cgroup, None) && !rig.host.has_output(&cgroup, Some(&exec.log)));
    rig.host.open_gate(&mut main).unwrap();
    let (host, log) = (&mut rig.host, Some(exec.log.as_path()));
    until("there is output", || host.has_output(&cgroup, log));
    until("the listing is there", || rig.log().lines().any(|l| l == "3"));
    let text = rig.log();
    let identity = rig.host.identity(&cgroup).unwrap();
    let name = identity.path().file_name().unwrap().to_str().unwrap();
    assert!(text.lines().any(|l| l.starts_with("0::") && l.ends_with(name)), "{text}");
    let fds: Vec<&str> = text.lines().filter(|l| l.parse::<u32>().is_ok()).collect();
    assert_eq!(fds, ["0", "1", "2", "3"], "3 is what ls itself opened");

    until("sleep runs", || {
        rig.host.evidence(&cgroup, Duration::from_secs(5)).processes.iter().any(|p| p.name == "sleep" && p.state == 'S')
    });
    let sample = rig.host.sample(&cgroup).unwrap();
    assert!(sample.cpu_usec.unwrap() > 0);
    let usage = rig.host.usage(&cgroup).unwrap();
    assert!(usage.memory_bytes.unwrap() > 100_000 && usage.tasks == Some(2), "{usage:?}");
    assert_eq!(rig.host.oom_kills(&cgroup), 0);
    let evidence = rig.host.evidence(&cgroup, Duration::from_secs(5));
    let sleep = evidence.processes.iter().find(|p| p.name == "sleep").unwrap();
    assert_eq!((sleep.state, sleep.ppid), ('S', rig.host.process_id(&main).pid));
    assert!(matches!(rig.host.remove(&cgroup), Err(KernelError::Busy { .. })));
    rig.host.kill(&cgroup).unwrap();
    rig.until_empty(&cgroup, |_, _| {});
    rig.remove(&cgroup);
}

#[test]
fn a_child_can_begin_in_its_cgroup() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (_, mut cgroup) = rig.cgroup();
    let exec = rig.exec(&["sh", "-c", "cat /proc/self/cgroup; exit 3"], &cgroup);
    let mut main = rig.host.spawn(&exec, &mut cgroup).unwrap().unwrap();
    assert_eq!(rig.host.populated(&cgroup).unwrap(), kernel_is_at_least(5, 7));
    rig.host.attach(&mut cgroup, &mut main).unwrap();
    rig.host.open_gate(&mut main).unwrap();
    until("it exits", || rig.status(&main) == Some(ExitStatus::Exited(3)));
    let name = rig.path(&cgroup);
    assert!(rig.log().trim().ends_with(name.file_name().unwrap().to_str().unwrap()));
    rig.remove(&cgroup);
}

#[test]
fn a_gate_that_never_opens_executes_nothing_and_leaves_nothing() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (_, mut cgroup) = rig.cgroup();
    let exec = rig.exec(&["touch", "executed"], &cgroup);
    let mut main = rig.host.spawn(&exec, &mut cgroup).unwrap().unwrap();
    rig.host.attach(&mut cgroup, &mut main).unwrap();
    drop(main);
    rig.until_empty(&cgroup, |_, _| {});
    assert!(!rig.tmp.path().join("executed").exists());
    rig.remove(&cgroup);
}

#[test]
fn a_gated_child_holds_no_copy_of_its_own_gate() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (_, mut cgroup) = rig.cgroup();
    let detached = rig.host.spawn(&rig.exec(&["true"], &cgroup), &mut cgroup).unwrap().unwrap();
    let foreground = guardian::launch::gate::foreground(&[b"true".to_vec()], Vec::new(), None).unwrap();
    for pid in [rig.host.process_id(&detached).pid, foreground.id().pid] {
        // The gate is the pipe that the child reads from while it waits.
        let mut gate = None;
        until("the child waits at the gate", || {
            let syscall = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
            let fd = syscall.strip_prefix("0 0x").and_then(|s| s.split(' ').next());
            gate = fd.and_then(|fd| u32::from_str_radix(fd, 16).ok());
            gate.is_some()
        });
        let link = |fd: &str| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        let gate = gate.unwrap().to_string();
        let same =
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        let same: Vec<String> = same.filter(|fd| link(fd) == link(&gate)).collect();
        assert_eq!(same, [gate]);
    }
    drop(foreground.into_parts().2);
    drop(detached);
    rig.remove(&cgroup);
}

#[test]
fn a_missing_command_is_an_error_of_the_gate() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (_, mut cgroup) = rig.cgroup();
    let mut main = rig.host.spawn(&rig.exec(&["no-such-command"], &cgroup), &mut cgroup).unwrap().unwrap();
    rig.host.attach(&mut cgroup, &mut main).unwrap();
    let error = rig.host.open_gate(&mut main).unwrap_err().to_string();
    assert_eq!(error, "execute no-such-command: command not found");
    until("it exits", || rig.status(&main) == Some(ExitStatus::Exited(127)));
    rig.remove(&cgroup);
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

/// Waits for a child that ends. An instance reaps every child of its process, so that of another test may have been first.
fn reap(mut child: Child) {
    if let Err(e) = child.wait() {
        assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::CHILD.raw_os_error()), "{e}");
    }
}

#[test]
fn another_cgroup_of_the_same_name_is_not_touched() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (run, cgroup) = rig.cgroup();
    let old = rig.host.identity(&cgroup).unwrap();
    fs::remove_dir(old.path()).unwrap();
    assert!(matches!(rig.host.kill(&cgroup), Err(KernelError::Gone { .. })));
    fs::create_dir(old.path()).unwrap();
    let mut foreign = sleeper();
    fs::write(old.path().join("cgroup.procs"), foreign.id().to_string()).unwrap();

    fn not_ours<T: std::fmt::Debug>(result: Result<T, KernelError>) {
        assert!(matches!(result, Err(KernelError::NotOurs { .. })), "{result:?}");
    }
    not_ours(rig.host.terminate(&cgroup));
    not_ours(rig.host.kill(&cgroup));
    not_ours(rig.host.freeze(&cgroup, true));
    not_ours(rig.host.remove(&cgroup));
    not_ours(rig.host.reopen(run, Some(&old)));
    not_ours(rig.host.reopen(run, None));
    assert!(foreign.try_wait().unwrap().is_none());
    assert_eq!(fs::read_to_string(old.path().join("cgroup.freeze")).unwrap(), "0\n");
    foreign.kill().unwrap();
    reap(foreign);
}

#[test]
fn a_run_is_found_again_by_inode_or_by_mark() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (run, cgroup) = rig.cgroup();
    let identity = rig.host.identity(&cgroup).unwrap();
    assert!(matches!(rig.host.create(&spec(run, Resources::default())), Err(KernelError::Busy { .. })));
    assert_eq!(rig.host.list().unwrap(), [run]);
    for known in [Some(&identity), None] {
        let again = rig.host.reopen(run, known).unwrap();
        assert_eq!(rig.host.identity(&again).unwrap(), identity);
    }
    rig.remove(&cgroup);
    assert!(matches!(rig.host.reopen(run, Some(&identity)), Err(KernelError::Gone { .. })));
    assert_eq!(rig.host.list().unwrap(), []);
}

/// Below systemd each scope is another base, and the next instance may be started in another one.
#[test]
fn a_run_is_found_again_by_an_instance_with_another_base() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (run, cgroup) = rig.cgroup();
    let known = rig.host.identity(&cgroup).unwrap();
    let key = rig.host.control_group().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let base = rig.host.control_group().unwrap().with_file_name(format!("{key}-other"));
    let (mut later, _) = Host::new(HostOptions {
        base: Some(base.clone()),
        move_instance: false,
        ..HostOptions::new(key, Path::new("/nonexistent"))
    })
    .unwrap();
    let again = later.reopen(run, Some(&known)).unwrap();
    assert_eq!(later.identity(&again).unwrap(), known);
    assert!(matches!(later.reopen(run, None), Err(KernelError::Gone { .. })), "where it is was not recorded");
    let cgroup = known.cgroup().unwrap();
    let another = ContainerId::Cgroup(CgroupIdentity { inode: cgroup.inode + 1, ..cgroup.clone() });
    assert!(matches!(later.reopen(run, Some(&another)), Err(KernelError::NotOurs { .. })));
    rig.remove(&again);
    assert!(matches!(later.reopen(run, Some(&known)), Err(KernelError::Gone { .. })));
    fs::remove_dir(later.control_group().unwrap()).unwrap();
    fs::remove_dir(base).unwrap();
}

/// A scope of systemd holds the client that starts the instance, and a cgroup with processes hands no controller on.
#[test]
fn what_is_in_a_delegated_base_is_moved_out_of_the_way_of_controllers() {
    let Some(rig) = Rig::new(false) else { return };
    let base = rig.host.control_group().unwrap().join("scope");
    fs::create_dir(&base).unwrap();
    let mut bystander = sleeper();
    let pid = bystander.id();
    fs::write(base.join("cgroup.procs"), pid.to_string()).unwrap();
    let options = || Options {
        base: Some(base.clone()),
        mount: None,
        key: "key".to_owned(),
        owner: Owner::new("key", "boot", true),
        move_instance: false,
    };
    let is_in =
        |cgroup: &Path| process::cgroup(pid).unwrap().ends_with(cgroup.strip_prefix(base.parent().unwrap()).unwrap());
    assert!(!CgroupTree::open(&options()).unwrap().make_room(&base).unwrap());
    assert!(is_in(&base), "it was not delegated");

    rustix::fs::setxattr(&base, "user.delegate", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let subtree = CgroupTree::open(&options()).unwrap();
    assert!(!subtree.make_room(base.parent().unwrap()).unwrap());
    let there = fs::read_to_string(base.join("cgroup.controllers")).unwrap();
    if there.split_ascii_whitespace().any(|c| c == "pids") {
        let run = spec(RunId::from_bytes([7; 6]), Resources { tasks_max: Some(50), ..Resources::default() });
        let cgroup = subtree.create(run.id).unwrap();
        assert_eq!(subtree.limit(&cgroup, &run.limits.resources), Vec::<String>::new());
        assert_eq!(cgroup.read("pids.max").unwrap(), "50\n");
    } else {
        assert!(subtree.make_room(&base).unwrap());
    }
    assert!(is_in(&base.join("key/bystanders")));
    bystander.kill().unwrap();
    reap(bystander);
}

/// Its second half runs in a process of its own, since it moves itself.
#[test]
fn an_instance_moves_out_of_the_run_that_it_was_started_in() {
    const NAME: &str = "an_instance_moves_out_of_the_run_that_it_was_started_in";
    const OPTIONS: &str = "GUARDIAN_TEST_MOVES";
    if let Some(key) = std::env::var_os(OPTIONS) {
        let base = mount::find().unwrap().mount_point.join("guardian-tests");
        let options =
            HostOptions { base: Some(base), ..HostOptions::new(key.into_string().unwrap(), Path::new("/nonexistent")) };
        let (host, _) = Host::new(options).unwrap();
        let cgroup = process::cgroup(std::process::id()).unwrap();
        assert!(
            host.control_group().unwrap().join("instance").ends_with(cgroup.strip_prefix("/").unwrap()),
            "{cgroup:?}"
        );
        return;
    }
    let Some(mut rig) = Rig::new(false) else { return };
    let (run, mut cgroup) = rig.cgroup();
    let key = rig.host.control_group().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let test = std::env::current_exe().unwrap();
    let argv = ["env", &format!("{OPTIONS}={key}"), test.to_str().unwrap(), "--exact", NAME, "--nocapture"];
    let exec = rig.exec(&argv, &cgroup);
    let mut main = rig.host.spawn(&exec, &mut cgroup).unwrap().unwrap();
    rig.host.attach(&mut cgroup, &mut main).unwrap();
    rig.host.open_gate(&mut main).unwrap();
    let mut status = None;
    until("the instance is done", || {
        status = rig.status(&main);
        status.is_some()
    });
    assert_eq!(status, Some(ExitStatus::Exited(0)), "{}", rig.log());
    assert_eq!(rig.host.list().unwrap(), [run], "the instance's own cgroup is no run");
    rig.remove(&cgroup);
}

#[test]
fn a_limit_without_its_controller_is_told() {
    let Some(mut rig) = Rig::new(false) else { return };
    let run = RunId::from_bytes([7; 6]);
    let resources = Resources { memory_max_bytes: Some(2 << 30), tasks_max: Some(50), cpu_max_percent: Some(100) };
    let created = rig.host.create(&spec(run, resources)).unwrap();
    let path = rig.path(&created.container);
    if !path.join("memory.max").exists() {
        assert!(created.notices.iter().any(|n| n.starts_with("memory_max of ")), "{:?}", created.notices);
    }
    for (file, value) in [("memory.max", "2147483648"), ("pids.max", "50"), ("cpu.max", "100000 100000")] {
        let limit = &file[..file.find('.').unwrap()];
        match fs::read_to_string(path.join(file)) {
            Ok(text) => assert_eq!(text.trim(), value),
            Err(_) => {
                assert!(created.notices.iter().any(|n| n.contains(&format!("the {limit} controller"))), "{limit}")
            }
        }
    }
    rig.remove(&created.container);
}

#[test]
fn a_process_that_is_gone_or_another_is_not_attached() {
    let Some(mut rig) = Rig::new(false) else { return };
    let (_, mut cgroup) = rig.cgroup();
    let mut child = sleeper();
    let id = ProcessId { pid: child.id(), start_ticks: process::stat(child.id()).unwrap().start_ticks };
    let mut opened = rig.host.open_process(id).unwrap();
    let other = ProcessId { start_ticks: id.start_ticks + 1, ..id };
    assert!(matches!(rig.host.open_process(other), Err(KernelError::Gone { .. })));
    child.kill().unwrap();
    reap(child);
    assert!(matches!(rig.host.attach(&mut cgroup, &mut opened), Err(KernelError::Gone { .. })));
    assert!(matches!(rig.host.open_process(id), Err(KernelError::Gone { .. })));
    rig.remove(&cgroup);
}

#[test]
fn the_exit_status_of_a_process_that_is_not_our_child_is_known_where_the_kernel_tells() {
    let Some(mut rig) = Rig::new(false) else { return };
    for (ending, expected) in [("exit 7", ExitStatus::Exited(7)), ("kill -9 $$", ExitStatus::Signaled(9))] {
        let inner = format!("read x < gate; {ending}");
        let script = format!("rm -f gate; mkfifo gate; sh -c '{inner}' & echo $!; wait");
        let mut middle = Command::new("sh")
            .args(["-c", &script])
            .current_dir(rig.tmp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(middle.stdout.take().unwrap()), &mut line).unwrap();
        let pid: u32 = line.trim().parse().unwrap();
        let id = ProcessId { pid, start_ticks: process::stat(pid).unwrap().start_ticks };
        let foreign = rig.host.open_process(id).unwrap();
        let run = RunId::from_bytes([1; 6]);
        rig.host.watch_process(run, Role::Main, &foreign).unwrap();
        assert_eq!(rig.status(&foreign), None);
        fs::write(rig.tmp.path().join("gate"), "x\n").unwrap();
        assert_eq!(rig.host.wait(Some(PATIENCE)).unwrap(), [Notice::ProcessExited(run, Role::Main)]);
        let status = rig.status(&foreign);
        reap(middle);
        match kernel_is_at_least(6, 15) {
            true => assert_eq!(status.or_else(|| rig.status(&foreign)), Some(expected)),
            false => assert_eq!(status, None),
        }
    }
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}

#[test]
fn a_log_keeps_its_newest_part_and_its_size() {
    let Some(mut rig) = Rig::new(false) else { return };
    let log = rig.tmp.path().join("big");
    let text: Vec<u8> = (0..1 << 20).map(|n| b'a' + (n >> 16) as u8).collect();
    fs::write(&log, &text).unwrap();
    match rig.host.cap_log(&log, 256 << 10) {
        Ok(()) => {}
        Err(KernelError::Io { source, .. }) if source.raw_os_error() == Some(95) => {
            return eprintln!("**** NOT TESTED: this file system has no holes ****");
        }
        Err(e) => panic!("{e}"),
    }
    let after = fs::read(&log).unwrap();
    assert_eq!(after.len(), text.len());
    assert!(after[768 << 10..] == text[768 << 10..] && after[..768 << 10].iter().all(|b| *b == 0));
    assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&log).unwrap()) * 512 <= 260 << 10);
    rig.host.cap_log(&log, 256 << 10).unwrap();
    assert!(matches!(rig.host.cap_log(&log.join("none"), 1), Err(KernelError::Io { .. } | KernelError::Gone { .. })));
}
