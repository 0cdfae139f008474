//! What goes through the relay that reads an agent's progress, against `cat` between the same two pipes.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Extent;
use super::table::{Promise, Table, Unit};

/// The least that goes through, in megabytes a second.
const PROMISED: f64 = 200.0;

const JSONL: &str = r#"{"progress":"jsonl","turn":"/type=turn","tool":"/tool/name","tool_input":"/tool/input"}"#;
const CLAUDE: &str = r#"{"progress":"stream-json","command":"claude"}"#;

/// Measures.
pub fn measure(extent: Extent, table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let size = if extent.quick { 64 << 20 } else { 256 << 20 };
    let tool = format!(
        "{{\"type\":\"assistant\",\"message\":{{\"id\":\"m\",\"content\":[{{\"type\":\"tool_use\",\"name\":\"Write\",\"input\":{{\"path\":\"a\",\
         \"text\":\"{}\"}}}}],\"usage\":{{\"input_tokens\":5,\"output_tokens\":7}}}}}}\n",
        "some words of a file\\n".repeat(90)
    );
    let result = format!(
        "{{\"type\":\"user\",\"message\":{{\"content\":[{{\"type\":\"tool_result\",\"content\":\"{}\"}}]}}}}\n",
        "what a tool has said ".repeat(3000)
    );
    for (what, line) in [("lines of 2 KB", tool), ("lines of 60 KB", result)] {
        let file = dir.path().join("stream");
        let mut out = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
        (0..size / line.len()).for_each(|_| out.write_all(line.as_bytes()).unwrap());
        drop(out);
        let guardian = env!("CARGO_BIN_EXE_guardian");
        let cat = through(&file, "cat", &[]);
        for (format, spec) in [("stream-json", CLAUDE), ("jsonl", JSONL)] {
            let passed = through(&file, guardian, &["relay", spec, "--"]);
            let what = format!("through the relay, {format}, {what}");
            table.add(&what, Unit::MegabytesPerSecond, passed, Some(("cat", cat)), Promise::AtLeast(PROMISED));
        }
    }
}

/// What goes through in a second of what `cat FILE` writes: as a child of the relay, or into `cat`.
fn through(file: &Path, program: &str, before: &[&str]) -> f64 {
    let size = std::fs::metadata(file).unwrap().len() as f64;
    let began = Instant::now();
    let mut command = Command::new(program);
    let mut writer = None;
    if before.is_empty() {
        let mut first = Command::new("cat").arg(file).stdout(Stdio::piped()).spawn().unwrap();
        command.stdin(first.stdout.take().unwrap());
        writer = Some(first);
    } else {
        command.args(before).arg("cat").arg(file).stdin(Stdio::null());
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let read = std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success() && writer.is_none_or(|mut w| w.wait().unwrap().success()));
    assert_eq!(read as f64, size);
    size / began.elapsed().as_secs_f64() / 1e6
}
