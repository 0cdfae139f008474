//! What only the memory of a process tells: the arguments that are pointers, and its command line.

use std::fs::File as OpenFile;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use super::calls::Shape;
use super::files;
use super::tasks::Looked;
use crate::kernel::syscall::Call;
use crate::kernel::{polled, process};
use crate::model::{FutexBy, Object, Wait};

/// As much of a command line as a person reads.
const COMMAND_CHARS: usize = 200;
/// As many descriptors of a poll as are looked at.
const MAX_POLLED: u64 = 128;

/// Reads it.
pub(super) fn look(looked: &mut [Looked], until: Instant) {
    for one in looked.iter_mut().take_while(|_| Instant::now() < until) {
        if !one.may_be_asked_for_memory() {
            continue;
        }
        let pid = one.seen.pid;
        let memory = Memory(OpenFile::open(format!("/proc/{pid}/mem")).ok());
        if !one.is_same() {
            continue;
        }
        one.seen.command = process::command_line(pid, COMMAND_CHARS).unwrap_or_default();
        let tids: Vec<u32> = one.seen.threads.iter().map(|t| t.tid).collect();
        for (thread, call) in one.seen.threads.iter_mut().zip(&one.calls) {
            if let (Wait::Call { on, .. }, Some((call, shape))) = (&mut thread.wait, call) {
                memory.tell(on, *call, *shape, pid, &tids);
            }
        }
    }
}

/// The memory of a process; none where that may not be read, which then tells nothing.
struct Memory(Option<OpenFile>);

impl Memory {
    fn read(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        self.0.as_ref()?.read_exact_at(&mut buffer, address).ok()?;
        Some(buffer)
    }

    fn tell(&self, on: &mut Object, call: Call, shape: Shape, pid: u32, tids: &[u32]) {
        let [a, b, c, ..] = call.args;
        match (on, shape) {
            (Object::Sleep { usec, .. }, Shape::Nanosleep) => *usec = self.timespec(a),
            (Object::Sleep { usec, left }, Shape::ClockNanosleep) => {
                let time = self.timespec(c);
                // TIMER_ABSTIME
                *left = b & 1 != 0;
                *usec = if *left { time.and_then(|t| Some(t.saturating_sub(clock_usec(a)?))) } else { time };
            }
            (Object::Several { some, .. }, Shape::Poll(_)) => {
                let bytes = usize::try_from(b.min(MAX_POLLED) * 8).unwrap_or(0);
                *some = files::telling(pid, &polled::of_poll(&self.read(a, bytes).unwrap_or_default()));
            }
            (Object::Several { some, total, .. }, Shape::Select) => {
                let sets = self.0.as_ref().and_then(|memory| polled::read_sets(memory, &call.args));
                let all = sets.map(|[read, write, except]| polled::of_select(&read, &write, &except));
                let all = all.unwrap_or_default();
                *total = u32::try_from(all.len()).unwrap_or(u32::MAX);
                *some = files::telling(pid, &all);
            }
            (Object::Futex { by, .. }, Shape::Futex) => {
                // The word, and what the C library keeps behind it in a mutex: `int lock; unsigned count; int owner;`.
                let Some(words) = self.read(a, 12) else { return };
                let word = |at: usize| words.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
                *by = futex_by(b, c as u32, word(0).unwrap_or(0), word(8).unwrap_or(0), tids);
            }
            _ => {}
        }
    }

    /// Microseconds.
    fn timespec(&self, address: u64) -> Option<u64> {
        usec_of(&self.read(address, 16)?)
    }
}

/// `struct timespec { long tv_sec; long tv_nsec; }`, in microseconds.
pub(super) fn usec_of(timespec: &[u8]) -> Option<u64> {
    let (secs, nanos) = timespec.split_at_checked(8)?;
    let number = |b: &[u8]| u64::try_from(i64::from_ne_bytes(b.try_into().ok()?)).ok();
    Some(number(secs)?.saturating_mul(1_000_000).saturating_add(number(nanos)? / 1000))
}

/// The time of a clock, in microseconds; none for one that is not common to all processes.
fn clock_usec(clock: u64) -> Option<u64> {
    let clock = match clock {
        0 => ClockId::Realtime,
        1 => ClockId::Monotonic,
        7 => ClockId::Boottime,
        _ => return None,
    };
    let now = clock_gettime(clock);
    let secs = u64::try_from(now.tv_sec).ok()?;
    Some(secs.saturating_mul(1_000_000).saturating_add(u64::try_from(now.tv_nsec).ok()? / 1000))
}

/// Whom a futex waits for. That the words are a mutex of the C library is an inference: the word says "locked, and somebody
/// waits", and a thread of the process is where the owner would be. Other locks have none there.
pub(super) fn futex_by(operation: u64, value: u32, word: u32, owner: u32, tids: &[u32]) -> Option<FutexBy> {
    const WAIT: u64 = 0;
    const WAIT_BITSET: u64 = 9;
    const LOCK_PI: [u64; 2] = [6, 13];
    const TID_MASK: u32 = 0x3fff_ffff;
    let is_thread = |tid: u32| tids.contains(&tid).then_some(tid);
    match operation & 0x7f {
        pi if LOCK_PI.contains(&pi) => is_thread(word & TID_MASK).map(FutexBy::Holder),
        // Joining waits for the kernel to clear the thread's id, which is the word's value until then.
        WAIT | WAIT_BITSET if word == value && is_thread(value).is_some() && value > 2 => Some(FutexBy::End(value)),
        WAIT | WAIT_BITSET if value == 2 && word == 2 => is_thread(owner).map(FutexBy::Holder),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_futex_tells_its_holder_only_where_it_looks_like_a_mutex() {
        let tids = [10, 11];
        assert_eq!(futex_by(128, 2, 2, 11, &tids), Some(FutexBy::Holder(11)));
        assert_eq!(futex_by(128, 2, 2, 12, &tids), None, "no thread of it");
        assert_eq!(futex_by(128, 2, 1, 11, &tids), None, "the word changed meanwhile");
        assert_eq!(futex_by(128, 0, 0, 11, &tids), None, "a semaphore");
        assert_eq!(futex_by(9 | 128 | 256, 11, 11, 0, &tids), Some(FutexBy::End(11)));
        assert_eq!(futex_by(6, 0, 0x8000_000b, 0, &tids), Some(FutexBy::Holder(11)));
    }

    #[test]
    fn memory_that_cannot_be_read_tells_nothing() {
        let none = Memory(None);
        assert_eq!(none.timespec(16), None);
        let own = Memory(OpenFile::open("/proc/self/mem").ok());
        let time: [i64; 2] = [3, 5_000];
        assert_eq!(own.timespec(time.as_ptr() as u64), Some(3_000_005));
        assert_eq!(own.timespec(1), None);
    }
}
