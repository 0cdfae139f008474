//! The targets of fuzzing: every place where bytes from outside come in, by name.
//!
//! Each room has its own, beside the parsers that they drive, and asserts more than that nothing panics. `tests/fuzz/run`
//! goes through them guided by coverage; the test below, on any toolchain, through each file of the corpora in `tests/fuzz`
//! and through some thousand changes of it.

use crate::model::fuzz::Target;

/// The targets of all rooms.
const ROOMS: [&[Target]; 13] = [
    crate::model::fuzz::TARGETS,
    crate::config::fuzz::TARGETS,
    crate::kernel::fuzz::TARGETS,
    crate::kernel::fuzz::LOOK,
    crate::kernel::fuzz::GIT,
    crate::launch::fuzz::TARGETS,
    crate::executor::fuzz::TARGETS,
    crate::engine::fuzz::TARGETS,
    crate::store::fuzz::TARGETS,
    crate::bus::fuzz::TARGETS,
    crate::cli::fuzz::TARGETS,
    crate::web::fuzz::TARGETS,
    crate::notify::fuzz::TARGETS,
];

/// Gives bytes to the target of this name. Panics where what it says of them does not hold.
pub fn run(target: &str, data: &[u8]) {
    if let Some((_, check)) = ROOMS.into_iter().flatten().find(|(name, _)| *name == target) {
        check(data);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use super::*;

    /// How many changes of each file are tried, and for how long at most: a build without optimisation is slow.
    const CHANGES: usize = 2000;
    const TIME_OF_A_TARGET: Duration = Duration::from_millis(350);
    /// A name, an argument or a file that is as long as this is long.
    const LONG: usize = 1 << 20;
    const LONGEST: Duration = Duration::from_secs(60);

    /// What stands in the place of a number, and of anything.
    const NUMBERS: [&str; 10] = [
        "0",
        "-1",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "18446744073709551615",
        "99999999999999999999",
        "0x1p-3",
    ];
    const HOSTILE: [&[u8]; 9] = [
        b"\0",
        b"\n",
        b"\x1b[2J\x1b]0;x\x07",
        b"\xff\xfe",
        b"\xc2\x9b31m",
        b"\xe2\x80\xae",
        b"\xf0\x9f\xa6\x80",
        b"\\u001b\\ud800",
        b"\"'`$(",
    ];

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
    }

    fn names() -> BTreeSet<String> {
        ROOMS.into_iter().flatten().map(|(name, _)| (*name).to_owned()).collect()
    }

    /// The files of a corpus, by name; small ones, since each is changed a thousand times.
    fn files(target: &str) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(corpus().join(target)).unwrap_or_else(|e| panic!("{target}: {e}"));
        let read =
            |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap());
        let mut files: Vec<_> = entries.map(|entry| read(entry.unwrap().path())).collect();
        files.sort();
        files
    }

    /// The numbers of splitmix64, the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        }

        fn below(&mut self, n: usize) -> usize {
            usize::try_from(self.next() % (n as u64).max(1)).unwrap()
        }

        fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
            all[self.below(all.len())]
        }
    }

    /// A change of an input: bits, pieces of another one, numbers, what no text has, and what is cut off.
    fn changed(data: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
        let mut data = data.to_vec();
        for _ in 0..=numbers.below(3) {
            let at = numbers.below(data.len() + 1);
            let until = at + numbers.below((data.len() - at).min(16) + 1);
            match numbers.below(8) {
                0 if at < data.len() => data[at] ^= 1 << numbers.below(8),
                1 if at < data.len() => data[at] = numbers.next() as u8,
                2 => drop(data.splice(at..until, [])),
                3 => drop(data.splice(at..until, numbers.of(&HOSTILE).iter().copied())),
                4 => {
                    let from = numbers.below(other.len() + 1);
                    let to = from + numbers.below((other.len() - from).min(64) + 1);
                    drop(data.splice(at..until, other[from..to].iter().copied()));
                }
                5 => data.truncate(at),
                6 => data = data.repeat(2),
                // The digits that are there, or the next ones.
                _ => {
                    let begin = (at..data.len()).find(|at| data[*at].is_ascii_digit()).unwrap_or(at);
                    let end = (begin..data.len()).find(|at| !data[*at].is_ascii_digit()).unwrap_or(data.len());
                    drop(data.splice(begin..end, numbers.of(&NUMBERS).bytes()));
                }
            }
            data.truncate(LONG);
        }
        data
    }

    /// What broke, if something did.
    fn broken(target: &str, file: &str, data: &[u8]) -> Option<String> {
        let done = catch_unwind(AssertUnwindSafe(|| run(target, data)));
        let shown = || format!("{target}, from {file}: b\"{}\"", data[..data.len().min(2000)].escape_ascii());
        done.err().map(|_| shown())
    }

    /// Each target with its files. Of each that breaks the first input is told.
    fn for_each(mut tried: impl FnMut(&str, &[(String, Vec<u8>)]) -> Option<String>) {
        let broken: Vec<String> = names().iter().filter_map(|target| tried(target, &files(target))).collect();
        assert!(broken.is_empty(), "what is said there was panicked about above:\n{}", broken.join("\n"));
    }

    #[test]
    fn every_target_has_a_corpus_and_a_program() {
        let entries = std::fs::read_dir(corpus()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(entries.collect::<BTreeSet<_>>(), names());
        let manifest = std::fs::read_to_string(corpus().with_file_name("Cargo.toml")).unwrap();
        let programs = manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        let programs: BTreeSet<String> = programs.filter(|name| *name != "guardian-fuzz").map(str::to_owned).collect();
        assert_eq!(programs, names());
    }

    #[test]
    fn corpora_and_thousands_of_changes_of_them_do_no_harm() {
        let mut tried = 0;
        for_each(|target, files| {
            let mut numbers = Numbers(files.len() as u64);
            let of_the_corpus = files.iter().find_map(|(file, data)| broken(target, file, data));
            let until = Instant::now() + TIME_OF_A_TARGET;
            let changes = files.iter().cycle().take(files.len() * CHANGES).take_while(|_| Instant::now() < until);
            of_the_corpus.or_else(|| broken(target, "nothing", b"")).or_else(|| {
                changes.inspect(|_| tried += 1).find_map(|(file, data)| {
                    let other = &files[numbers.below(files.len())].1;
                    broken(target, file, &changed(data, other, &mut numbers))
                })
            })
        });
        println!("{tried} inputs");
    }

    #[test]
    fn a_megabyte_of_anything_does_no_harm_and_takes_no_time() {
        let fillings: [&[u8]; 6] = [b"\0", b"\n", b"\xff", b"a", b"1", b"[\x1b"];
        for_each(|target, files| {
            let (file, data) = &files[0];
            let (before, after) = data.split_at(data.len() / 2);
            fillings.iter().find_map(|filling| {
                let long: Vec<u8> = filling.iter().copied().cycle().take(LONG).collect();
                let begun = Instant::now();
                let broken = broken(target, file, &[before, &long, after].concat());
                let took = begun.elapsed();
                broken.or_else(|| (took > LONGEST).then(|| format!("{target}: {filling:?} takes {took:?}")))
            })
        });
    }
}
