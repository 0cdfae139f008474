//! The resident memory of a shim, which has one thread: what only its start needed is given back.
//!
//! Starting touches most of the executable and its libraries (the kernel maps 16 pages around each one that is touched),
//! and little of it is needed again by one that waits. Dropped, it stays in the page cache and comes back page by
//! page.
#![allow(unsafe_code)]

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};

/// The read-only file mappings of this process, none of whose pages differs from its file.
#[derive(Debug, Default)]
pub struct FilePages(Vec<(usize, usize)>);

impl FilePages {
    /// Finds them in /proc.
    pub fn find() -> Self {
        std::fs::read_to_string("/proc/self/smaps").map(|maps| Self(unchanged(&maps))).unwrap_or_default()
    }

    /// Drops their pages. What cannot be dropped stays.
    pub fn drop_pages(self) {
        for (start, length) in self.0 {
            // SAFETY: the range is a mapping of this process, by its own list, that is private, of a file, not writable,
            // and never was: every page is the file's, and a dropped one is read from the page cache when next touched.
            // (Relocated data is read-only too, but was writable.) Nothing here unmaps a library or makes it writable, so
            // what was found holds for as long as the process lives.
            let _ = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
        }
    }
}

/// Start and length of each mapping of `/proc/PID/smaps` that is read-only, of a file, and the same as the file.
///
/// That none of its pages is anonymous proves nothing: for a moment a page is not there while the kernel migrates it, or
/// for longer while it is swapped out, and a dropped one would come back as it is in the file, without its relocations.
/// But a private mapping that is or was writable is accounted for, which the flag `ac` shows from then on.
pub(super) fn unchanged(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let changeable = flags.split_ascii_whitespace().any(|flag| flag == "ac" || flag == "wr");
            found.extend(mapping.take().filter(|_| !changeable));
        } else if let Some(header) = header(line) {
            mapping = header;
        }
    }
    found
}

/// `START-END MODE OFFSET DEVICE INODE PATH`: none for another line, and no range for a mapping that is not of interest.
fn header(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let mode = fields.next()?;
    let of_a_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    let wanted = of_a_file && (mode == "r-xp" || mode == "r--p");
    Some(end.checked_sub(start).filter(|_| wanted).map(|length| (start, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_same_as_its_file_is_dropped() {
        let mapping =
            |header: &str, flags: &str| format!("{header}\nRss: 8 kB\nAnonymous: 0 kB\nVmFlags: rd mr mw me {flags}\n");
        let smaps = [
            mapping("1000-3000 r-xp 00000000 fe:00 123    /usr/bin/x y", "ex "),
            mapping("3000-4000 r--p 00000000 fe:00 123 /usr/bin/x", ""),
            // Relocated data, at a moment when its pages are somewhere else.
            mapping("4000-5000 r--p 00000000 fe:00 123 /usr/bin/x", "ac "),
            mapping("5000-6000 rw-p 00000000 fe:00 123 /usr/bin/x", "wr ac "),
            mapping("6000-7000 r-xp 00000000 00:00 0 [vdso]", "de "),
            mapping("7000-8000 r--s 00000000 fe:00 9 /var/db-shm", ""),
            mapping("8000-9000 r--p 00000000 00:00 0", ""),
        ];
        assert_eq!(unchanged(&smaps.concat()), [(0x1000, 0x2000), (0x3000, 0x1000)]);
        assert_eq!(unchanged("nonsense\nVmFlags: rd\n"), []);
        assert_eq!(unchanged("1000-3000 r-xp 00000000 fe:00 123 /usr/bin/x\nAnonymous: 0 kB\n"), [], "not known");
        FilePages::find().drop_pages();
        assert!(!unchanged(&std::fs::read_to_string("/proc/self/smaps").unwrap()).is_empty(), "and it still runs");
    }
}
