//! What `guardian top` costs that shows 1,000 runs: itself, and the instance that it asks.

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};

use super::Extent;
use super::adaptor::Instance;
use super::host::{cpu_time, own_cpu_time, until};
use super::scale::{percent, start};
use super::table::{Promise, Table, Unit};

const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// The view in a terminal that nobody looks at; ended with the measurement, however that ends.
struct Top {
    child: Child,
    drawn: Arc<AtomicU64>,
}

impl Top {
    fn start(instance: &Instance) -> Self {
        let OpenptyResult { master, slave } = openpty(Some(&SIZE), None).unwrap();
        let plain = instance.command(&["top"]);
        // In a session of its own, whose terminal this is: not in that of whoever measures.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(plain.get_program()).args(plain.get_args()).env("TERM", "xterm-256color");
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let (stdin, stdout) = (slave.try_clone().unwrap(), slave.try_clone().unwrap());
        let child = command.stdin(stdin).stdout(stdout).stderr(slave).spawn().unwrap();
        // Held here, the ends of the terminal would keep its reader from noticing the end.
        drop(command);
        let drawn = Arc::new(AtomicU64::new(0));
        let counted = drawn.clone();
        std::thread::spawn(move || {
            let (mut terminal, mut buffer) = (File::from(master), [0; 65536]);
            while let Ok(n @ 1..) = terminal.read(&mut buffer) {
                counted.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        Self { child, drawn }
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measures the view of 1,000 runs, which asks for them once a second.
pub fn measure(extent: Extent, table: &mut Table) {
    let instance = Instance::start();
    let runs = start(&instance, 1000);
    std::thread::sleep(Duration::from_secs(3));
    let seconds = Duration::from_secs(extent.seconds);
    let before = cpu_time(instance.pid());
    std::thread::sleep(seconds);
    let alone = percent(cpu_time(instance.pid()) - before, seconds);
    let before = own_cpu_time();
    let lists = 10;
    (0..lists).for_each(|_| assert_eq!(instance.list().len(), runs.len()));
    let list = (own_cpu_time() - before).as_secs_f64() * 1000.0 / f64::from(lists);

    let top = Top::start(&instance);
    let drawn = || top.drawn.load(Ordering::Relaxed);
    until("the view is drawn", || (drawn() > 1000).then_some(()));
    // The first frame is all of it, the others what has changed.
    std::thread::sleep(Duration::from_secs(2));
    let (of_top, of_instance, bytes) = (cpu_time(top.child.id()), cpu_time(instance.pid()), drawn());
    std::thread::sleep(seconds);
    let each = |cpu: Duration| cpu.as_secs_f64() * 1000.0 / seconds.as_secs_f64();
    let refresh = each(cpu_time(top.child.id()) - of_top);
    let beside = percent(cpu_time(instance.pid()) - of_instance, seconds);
    let bytes = (drawn() - bytes) as f64 / seconds.as_secs_f64();
    let what = format!("guardian top, CPU of a frame each second, {} runs", runs.len());
    table.add(&what, Unit::Ms, refresh, Some(("reading the list alone", list)), Promise::Times(3.0, 0.0));
    table.add("  bytes that it sends to the terminal for it", Unit::Count, bytes, None, Promise::None);
    let baseline = Some(("without it", alone));
    table.add("  the instance beside it, of a core", Unit::Percent, beside, baseline, Promise::None);
    drop(top);
    instance.kill_all(&runs);
}
