//! The terminal while the view has it, and giving it back: at the end, while the view is stopped, and when it panics.

use std::io::{self, BufWriter, Stdout, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{DisableBracketedPaste, EnableBracketedPaste};
use ratatui::crossterm::execute;
use ratatui::crossterm::style::force_color_output;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::layout::Size;

use super::app::App;
use super::draw::draw;
use super::paint::Paint;
use crate::failpoint;

/// The terminal is ours: whoever gives it back does so once, since to leave the other screen twice moves the cursor.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// More than a frame has, as a rule: one is one write, which ssh sends as one packet or few.
const FRAME: usize = 64 << 10;

/// The terminal.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    paint: Paint,
}

impl Screen {
    /// Takes the terminal.
    pub fn take(color: bool) -> io::Result<Self> {
        // What was decided holds: crossterm looks for NO_COLOR itself, which `--color always` is stronger than.
        force_color_output(color);
        give_back_in_a_panic();
        take()?;
        match Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(FRAME, io::stdout()))) {
            Ok(terminal) => Ok(Self { terminal, paint: Paint { color } }),
            Err(e) => {
                give_back();
                Err(e)
            }
        }
    }

    /// The columns and lines that it has now.
    pub fn size(&self) -> io::Result<(u16, u16)> {
        self.terminal.size().map(|Size { width, height }| (width, height))
    }

    /// Draws what is not on the screen yet.
    pub fn draw(&mut self, app: &App) -> io::Result<()> {
        failpoint::hit("top.draw")?;
        self.terminal.draw(|frame| draw(app, self.paint, frame)).map(drop)
    }

    /// Draws everything with the next frame, whatever is on the screen. Terminal::clear asks the terminal where the cursor is,
    /// whose answer the thread that reads keys would get.
    pub fn redraw(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(ratatui::layout::Rect::new(0, 0, size.width, size.height))
    }

    /// Stops, as ^Z stops any command: with its process group, whose shell gets the terminal as it was. Returns when it is
    /// continued; a shell that continues it in the background has it stopped once more, until it is in the foreground.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        let _ = kill(Pid::from_raw(0), Signal::SIGTSTP);
        take()?;
        self.redraw()
    }

    /// Takes the terminal anew: somebody has stopped us without our doing, and a shell has set it otherwise.
    pub fn retake(&mut self) -> io::Result<()> {
        give_back();
        take()?;
        self.redraw()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn take() -> io::Result<()> {
    // First, since it stops who is in the background; nothing may be written before.
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    // What is pasted is told from what is typed.
    execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste)
}

/// Sets the terminal as it was without writing to it, which may never end: its output stands still.
pub fn give_up() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = disable_raw_mode();
    }
}

/// Where the terminal is gone, there is nothing to be given back and nobody to be told.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        let _ = execute!(out, DisableBracketedPaste, LeaveAlternateScreen, Show);
        let _ = out.flush();
        let _ = disable_raw_mode();
    }
}

/// What a panic says has to be seen.
fn give_back_in_a_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            tell(panic);
        }));
    });
}
