//! Each promise of speed and size beside its baseline, measured in the same run: `cargo bench`, as root with cgroup2.
//!
//! `--quick` takes fewer and shorter measurements and leaves out the largest scale. A time alone never fails: a slow or
//! busy machine is no mistake of ours, and the baseline beside it tells.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adaptor;
mod evidence;
mod host;
mod kill;
mod launch;
mod relay;
mod scale;
mod subtree;
mod table;
mod top;
mod web;

use table::Table;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Fewer and shorter.
    pub quick: bool,
    /// Repetitions of what takes milliseconds.
    pub rounds: usize,
    /// Seconds for what is measured over time.
    pub seconds: u64,
}

/// A name by which it can be chosen, and what measures it.
type Section = (&'static str, fn(Extent, &mut Table));

fn main() {
    // cargo passes --bench; --test is `cargo test --benches`, which only wants to know that it starts.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.iter().any(|a| a == "--test" || a == "--list") {
        return;
    }
    let quick = args.iter().any(|a| a == "--quick");
    let chosen: Vec<&String> = args.iter().filter(|a| !a.starts_with("--")).collect();
    if let Err(why) = host::can_measure() {
        eprintln!("!!! the benchmarks DID NOT RUN: {why}");
        std::process::exit(i32::from(std::env::var("CI").as_deref() == Ok("true")));
    }
    let extent = match quick {
        true => Extent { quick, rounds: 5, seconds: 3 },
        false => Extent { quick, rounds: 20, seconds: 20 },
    };
    let sections: [Section; 9] = [
        ("kill", kill::measure),
        ("evidence", evidence::measure),
        ("launch", launch::measure),
        ("relay", relay::measure),
        ("subtree", subtree::measure),
        ("idle", scale::idle),
        ("scale", scale::measure),
        ("top", top::measure),
        ("web", web::measure),
    ];
    let mut table = Table::default();
    for (name, measure) in sections {
        if chosen.is_empty() || chosen.iter().any(|c| *c == name) {
            eprintln!("measuring: {name}");
            measure(extent, &mut table);
        }
    }
    table.print();
}
