//! The table of results.

use std::time::Duration;

/// What a value is counted in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Mebibytes.
    MiB,
    /// Percent of one core.
    Percent,
    /// A plain number.
    Count,
    /// Millions of bytes in a second.
    MegabytesPerSecond,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Ms => format!("{value:.3} ms"),
            Unit::MiB => format!("{value:.2} MiB"),
            Unit::Percent => format!("{value:.2} %"),
            Unit::Count => format!("{value:.0}"),
            Unit::MegabytesPerSecond => format!("{value:.0} MB/s"),
        }
    }
}

/// What is promised about a value.
#[derive(Debug, Clone, Copy)]
pub enum Promise {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most so many times the baseline, and this more.
    Times(f64, f64),
    /// Nothing: it is here for the reader.
    None,
}

/// One measurement.
#[derive(Debug)]
struct Row {
    what: String,
    unit: Unit,
    measured: f64,
    baseline: Option<(String, f64)>,
    promise: Promise,
}

/// The results so far.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    /// Adds a measurement with its baseline, which is named.
    pub fn add(&mut self, what: &str, unit: Unit, measured: f64, baseline: Option<(&str, f64)>, promise: Promise) {
        let baseline = baseline.map(|(name, value)| (name.to_owned(), value));
        let row = Row { what: what.to_owned(), unit, measured, baseline, promise };
        eprintln!("  {}", row.cells().join(" | "));
        self.rows.push(row);
    }

    /// Adds a line below the table.
    pub fn note(&mut self, text: String) {
        eprintln!("  {text}");
        self.notes.push(text);
    }

    /// Prints all of it to standard output.
    pub fn print(&self) {
        let head = ["measured", "value", "baseline", "ratio", "promise", "held"].map(str::to_owned);
        let rows: Vec<[String; 6]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let widths: [usize; 6] =
            std::array::from_fn(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or_default());
        println!();
        for (n, row) in rows.iter().enumerate() {
            let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            println!("| {} |", padded.collect::<Vec<_>>().join(" | "));
            if n == 0 {
                println!("|{}|", widths.map(|w| "-".repeat(w + 2)).join("|"));
            }
        }
        println!();
        self.notes.iter().for_each(|note| println!("{note}"));
        let broken = self.rows.iter().filter(|r| r.held() == Some(false)).count();
        println!("{} promises held, {broken} not", self.rows.iter().filter(|r| r.held() == Some(true)).count());
    }
}

impl Row {
    fn bound(&self) -> Option<f64> {
        match self.promise {
            Promise::AtMost(bound) | Promise::AtLeast(bound) => Some(bound),
            Promise::Times(times, more) => self.baseline.as_ref().map(|(_, base)| times * base + more),
            Promise::None => None,
        }
    }

    fn held(&self) -> Option<bool> {
        let is_least = matches!(self.promise, Promise::AtLeast(_));
        self.bound().map(|bound| if is_least { self.measured >= bound } else { self.measured <= bound })
    }

    fn cells(&self) -> [String; 6] {
        let (baseline, ratio) = match &self.baseline {
            Some((name, value)) if *value > 0.0 => {
                (format!("{} ({name})", self.unit.show(*value)), format!("{:.2}", self.measured / value))
            }
            Some((name, value)) => (format!("{} ({name})", self.unit.show(*value)), String::new()),
            None => Default::default(),
        };
        let sign = if matches!(self.promise, Promise::AtLeast(_)) { '≥' } else { '≤' };
        let promise = self.bound().map_or(String::new(), |bound| format!("{sign} {}", self.unit.show(bound)));
        let held = self.held().map_or("", |held| if held { "yes" } else { "NO" });
        [self.what.clone(), self.unit.show(self.measured), baseline, ratio, promise, held.to_owned()]
    }
}

/// The median, in milliseconds.
pub fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
}
