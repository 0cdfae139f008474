//! A stream cut into lines, of which none is held that is longer than a bound.

/// The longest line that is read. A longer one is passed on like any other.
pub const LONGEST: usize = 8 << 20;

/// What is kept of a buffer that a long line has made large.
const KEPT: usize = 1 << 20;

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It was longer than [`LONGEST`].
    TooLong,
}

/// What is held of the line that has not ended yet.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// Takes in the next piece of the stream, and gives each line that ends in it.
    pub fn feed(&mut self, mut piece: &[u8], each: &mut dyn FnMut(Line<'_>)) {
        while let Some(at) = memchr::memchr(b'\n', piece) {
            let (line, rest) = (&piece[..at], &piece[at + 1..]);
            piece = rest;
            match self.held.is_empty() && !self.too_long {
                // The usual line is within a piece, and is not copied.
                true => each(if line.len() > LONGEST { Line::TooLong } else { Line::Whole(line) }),
                false => {
                    self.hold(line);
                    self.end(each);
                }
            }
        }
        self.hold(piece);
    }

    /// Gives the line that has no end, if there is one: the stream has ended.
    pub fn end(&mut self, each: &mut dyn FnMut(Line<'_>)) {
        match std::mem::take(&mut self.too_long) {
            true => each(Line::TooLong),
            false if self.held.is_empty() => {}
            false => each(Line::Whole(&self.held)),
        }
        self.held.clear();
        self.held.shrink_to(KEPT);
    }

    fn hold(&mut self, piece: &[u8]) {
        if !self.too_long && self.held.len() + piece.len() <= LONGEST {
            self.held.extend_from_slice(piece);
        } else if !piece.is_empty() {
            self.too_long = true;
            self.held = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        let mut each = |line: Line<'_>| match line {
            Line::Whole(line) => all.push(Some(line.to_vec())),
            Line::TooLong => all.push(None),
        };
        pieces.iter().for_each(|piece| lines.feed(piece, &mut each));
        lines.end(&mut each);
        all
    }

    #[test]
    fn lines_are_the_same_whatever_the_pieces() {
        let text = b"one\n\ntwo three\nfour";
        let whole = lines_of(&[text]);
        assert_eq!(whole, [&b"one"[..], b"", b"two three", b"four"].map(|l| Some(l.to_vec())));
        for size in 1..text.len() {
            let pieces: Vec<&[u8]> = text.chunks(size).collect();
            // An empty line is only seen where it is within a piece, and means nothing.
            let seen: Vec<_> = lines_of(&pieces).into_iter().filter(|l| l.as_deref() != Some(b"")).collect();
            assert_eq!(seen, [&b"one"[..], b"two three", b"four"].map(|l| Some(l.to_vec())), "pieces of {size}");
        }
    }

    #[test]
    fn a_line_above_the_bound_is_not_held_and_the_next_one_is_read() {
        let long = vec![b'x'; LONGEST / 2 + 1];
        assert_eq!(lines_of(&[&long, &long, b"\nnext\n"]), [None, Some(b"next".to_vec())]);
        assert_eq!(lines_of(&[&[&long[..], &long, b"\nnext"].concat()]), [None, Some(b"next".to_vec())]);
        let mut lines = Lines::default();
        (0..100).for_each(|_| lines.feed(&long, &mut |_| ()));
        assert!(lines.held.capacity() == 0, "nothing of a long line is held");
    }
}
