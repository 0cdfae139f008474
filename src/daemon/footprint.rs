//! The instance's own resident memory: what only its start needed is given back.
//!
//! Starting touches most of the executable's text (the kernel maps 16 pages around each one that is touched), and none of
//! it is needed again by an instance that waits. Dropped, it stays in the page cache and comes back page by page.
#![allow(unsafe_code)]

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};

/// Drops the pages of all executable file mappings from this process. What cannot be dropped stays.
pub fn drop_text() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(text) {
        // SAFETY: the range is a mapping of this process, by its own list, that is private, executable and not
        // writable, so its pages are the file's, unchanged: dropped ones are read from the page cache when next touched.
        // (Relocated data is in other mappings, which are not executable.)
        let _ = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
    }
}

/// Start and length, if the line of /proc/PID/maps is of text: `START-END r-xp OFFSET DEVICE INODE PATH`.
fn text(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, mode, path) = (fields.next()?, fields.next()?, fields.nth(3)?);
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (mode == "r-xp" && path.starts_with('/')).then(|| Some((start, end.checked_sub(start)?))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_files_is_dropped() {
        assert_eq!(text("1000-3000 r-xp 00000000 fe:00 123                    /usr/bin/x y"), Some((0x1000, 0x2000)));
        for other in [
            "1000-3000 r--p 00000000 fe:00 123 /usr/bin/x",
            "1000-3000 rwxp 00000000 fe:00 123 /usr/bin/x",
            "1000-3000 r-xp 00000000 00:00 0 [vdso]",
            "1000-3000 r-xp 00000000 00:00 0",
            "3000-1000 r-xp 00000000 fe:00 123 /usr/bin/x",
            "",
        ] {
            assert_eq!(text(other), None, "{other}");
        }
        drop_text();
        assert_eq!(text("it still runs"), None);
    }
}
