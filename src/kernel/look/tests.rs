use super::*;

fn listing(pids: &str) -> (tempfile::TempDir, CgroupDir) {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("cgroup.procs"), pids).unwrap();
    let dir = CgroupDir::open_unchecked(tmp.path()).unwrap();
    (tmp, dir)
}

#[test]
fn what_is_gone_is_counted_but_not_described() {
    let me = std::process::id();
    let (_tmp, dir) = listing(&format!("{me}\n4194000\n"));
    let evidence = take(&dir, Duration::from_secs(5));
    assert_eq!(evidence.total, 2);
    assert_eq!(evidence.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [me]);
    assert!("RSD".contains(evidence.processes[0].state));
}

#[test]
fn without_time_only_the_number_is_known() {
    let (_tmp, dir) = listing(&format!("{}\n", std::process::id()));
    let evidence = take(&dir, Duration::ZERO);
    assert_eq!((evidence.total, evidence.processes), (1, Vec::new()));
}
