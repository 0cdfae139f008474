//! CSV (RFC 4180) on standard output, for spreadsheets and scripts.

use std::io;

use super::output::escape;

/// Writes rows under their headings.
pub fn write<const N: usize>(headings: [&str; N], rows: impl Iterator<Item = [String; N]>) -> io::Result<()> {
    write_to(io::stdout().lock(), headings, rows)
}

fn write_to<const N: usize>(
    to: impl io::Write,
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(to);
    // The crate wraps errors of the pipe, which whoever reads no further is no error of.
    let plain = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(e) => e,
        other => io::Error::other(format!("{other:?}")),
    };
    writer.write_record(headings).map_err(plain)?;
    for row in rows {
        writer.write_record(row).map_err(plain)?;
    }
    writer.flush()
}

/// Text from outside: control characters are escaped, and what a spreadsheet would take for a formula is not one.
pub fn text(text: &str) -> String {
    let text = escape(text);
    if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_inert() {
        let mut out = Vec::new();
        let rows = [["a,b".to_owned(), text("say \"x\"\n\x1b[2J")], ["".to_owned(), text("=HYPERLINK(\"x\")")]];
        write_to(&mut out, ["one", "two"], rows.into_iter()).unwrap();
        let expected = "one,two\n\"a,b\",\"say \"\"x\"\"\\n\\u{1b}[2J\"\n,\"'=HYPERLINK(\"\"x\"\")\"\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
