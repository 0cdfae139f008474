//! Where what is on the screen.

use ratatui::layout::Rect;

/// The fewest lines beside header and status line that are worth being divided between runs and details.
const DIVIDED: u16 = 12;

/// The parts of the screen, from its top to its bottom; one for which there is no room is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Areas {
    /// The instance, and how runs are listed.
    pub header: Rect,
    /// The runs below their headings.
    pub table: Rect,
    /// The selected run.
    pub details: Rect,
    /// What was told, or what can be typed.
    pub status: Rect,
}

impl Areas {
    /// Those of a screen of this size.
    pub fn of((width, height): (u16, u16)) -> Self {
        let header = match height {
            8.. => 2,
            3.. => 1,
            _ => 0,
        };
        let status = u16::from(height >= 4);
        let rest = height - header - status;
        // Parts that do not depend on the runs, so that nothing jumps when one begins or ends.
        let table = if rest < DIVIDED { rest } else { u16::try_from(u32::from(rest) * 9 / 20).unwrap_or(rest) };
        let part = |y: u16, height: u16| Rect { x: 0, y, width, height };
        Self {
            header: part(0, header),
            table: part(header, table),
            details: part(header + table, rest - table),
            status: part(height - status, status),
        }
    }

    /// How many runs have room.
    pub fn runs(&self) -> usize {
        usize::from(self.table.height.saturating_sub(1))
    }

    /// How many lines of a log have room, on a screen of this size.
    pub fn log_lines((_, height): (u16, u16)) -> usize {
        usize::from(height.saturating_sub(2))
    }
}
