//! What the processes of a run use, summed.

use super::super::process::Io;
use super::table::Entry;
use crate::model::Usage;

const USEC_PER_SEC: u64 = 1_000_000;

/// Sums over processes, ended ones among them; `waited_cpu_ticks` is that of those which the root has waited for.
///
/// The sum falls where a parent ignores SIGCHLD: nobody waits for its children, and what they used is counted nowhere.
pub fn usage<'a>(waited_cpu_ticks: u64, processes: impl Iterator<Item = &'a Entry>) -> Usage {
    let (mut ticks, mut pages, mut tasks) = (waited_cpu_ticks, 0u64, 0u64);
    for process in processes {
        ticks = ticks.saturating_add(process.cpu_ticks).saturating_add(process.waited_cpu_ticks);
        pages = pages.saturating_add(process.rss_pages);
        tasks += if process.has_ended() { 0 } else { u64::from(process.threads) };
    }
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Usage {
        cpu_usec: Some(ticks.saturating_mul(USEC_PER_SEC) / per_second),
        memory_bytes: Some(pages.saturating_mul(rustix::param::page_size() as u64)),
        tasks: Some(tasks),
        ..Usage::default()
    }
}

/// Sums over the processes, and over those which the root has waited for: what it has now beyond what was its own.
pub fn io(root: Io, own: Io, processes: impl Iterator<Item = Io>) -> Io {
    let waited = Io {
        read_bytes: root.read_bytes.saturating_sub(own.read_bytes),
        write_bytes: root.write_bytes.saturating_sub(own.write_bytes),
        characters: root.characters.saturating_sub(own.characters),
    };
    processes.fold(waited, |sum, one| Io {
        read_bytes: sum.read_bytes.saturating_add(one.read_bytes),
        write_bytes: sum.write_bytes.saturating_add(one.write_bytes),
        characters: sum.characters.saturating_add(one.characters),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tree::testing::entry;

    #[test]
    fn a_run_has_used_what_its_processes_have_and_what_was_waited_for() {
        let hz = rustix::param::clock_ticks_per_second();
        let live = Entry { cpu_ticks: hz, waited_cpu_ticks: 2 * hz, rss_pages: 3, threads: 4, ..entry(2, 1) };
        let zombie = Entry { cpu_ticks: 5 * hz, state: 'Z', ..entry(3, 2) };
        let sum = usage(10 * hz, [&live, &zombie].into_iter());
        assert_eq!(sum.cpu_usec, Some(18 * USEC_PER_SEC));
        assert_eq!(sum.memory_bytes, Some(3 * rustix::param::page_size() as u64));
        assert_eq!(sum.tasks, Some(4));
        assert_eq!(usage(0, [].into_iter()).cpu_usec, Some(0));
    }

    #[test]
    fn what_the_root_read_to_start_is_no_activity_of_the_run() {
        let bytes = |n| Io { read_bytes: n, write_bytes: 10 * n, characters: 100 * n };
        assert_eq!(io(bytes(7), bytes(7), [].into_iter()), Io::default());
        assert_eq!(io(bytes(9), bytes(7), [bytes(1), bytes(3)].into_iter()), bytes(6));
        // Read for the first time only now, it cannot be less than nothing.
        assert_eq!(io(bytes(1), bytes(2), [bytes(1)].into_iter()), bytes(1));
    }
}
