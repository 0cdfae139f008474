//! The last output of a run that has a log.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::model::{LastOutput, Wall};

/// From so much of the end of a log the last line is taken.
const END_BYTES: u64 = 4096;
/// As much of a line as a person reads.
const LINE_CHARS: usize = 200;

/// Reads it; none if the log cannot be read.
pub fn last(log: &Path) -> Option<LastOutput> {
    // Of a file that is put in its place nothing is told, and nothing waits for one that is a FIFO.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, log, flags, Mode::empty()).ok()?);
    let seen = file.metadata().ok().filter(|seen| seen.is_file())?;
    let usec = seen.mtime().checked_mul(1_000_000)?.checked_add(seen.mtime_nsec() / 1000)?;
    let line = last_line(&end_of(&file, seen.len()).ok()?);
    Some(LastOutput { at: Wall(u64::try_from(usec).ok()?), bytes: seen.len(), line })
}

fn end_of(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let begin = length.saturating_sub(END_BYTES);
    let mut end = vec![0; usize::try_from(length - begin).unwrap_or(0)];
    file.read_exact_at(&mut end, begin)?;
    Ok(end)
}

/// The last line with anything in it. One that was written over, as bars of progress are, is what it was last.
pub(super) fn last_line(end: &[u8]) -> String {
    let text = String::from_utf8_lossy(end);
    // What was given back to the file system reads as NUL.
    let mut lines = text.rsplit(['\n', '\r', '\0']);
    lines
        .find(|line| !line.trim().is_empty())
        .map(|line| line.trim().chars().take(LINE_CHARS).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_last_that_has_something_in_it() {
        let lines = [
            ("", ""),
            ("\n\n", ""),
            ("one\ntwo", "two"),
            ("one\ntwo \n \n", "two"),
            ("10 %\r20 %\r30 %\r", "30 %"),
            ("\0\0\0one\n", "one"),
        ];
        for (text, line) in lines {
            assert_eq!(last_line(text.as_bytes()), line, "{text:?}");
        }
        assert_eq!(last_line(&[b'x'; 4096]).len(), LINE_CHARS);
        assert_eq!(last_line(b"a\n\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn of_a_log_the_end_is_read_and_its_time_told() {
        let tmp = tempfile::tempdir().unwrap();
        let log = tmp.path().join("log");
        assert_eq!(last(&log), None);
        std::fs::write(&log, "").unwrap();
        assert_eq!(last(&log).map(|o| (o.bytes, o.line)), Some((0, String::new())));
        std::fs::write(&log, ["x".repeat(100_000).as_str(), "the end"].join("\n")).unwrap();
        let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(1_700_000_000_000_001);
        File::options().write(true).open(&log).unwrap().set_modified(then).unwrap();
        let read = LastOutput { at: Wall(1_700_000_000_000_001), bytes: 100_008, line: "the end".into() };
        assert_eq!(last(&log), Some(read));
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&log, &link).unwrap();
        assert_eq!(last(&link), None, "another file in its place");
    }
}
