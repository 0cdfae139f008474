//! What a thread is blocked in: `/proc/PID/task/TID/syscall`, which the kernel shows to who may trace the process.

/// What `/proc/PID/syscall` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Current {
    /// The thread is not blocked.
    Running,
    /// It is blocked, in no system call.
    None,
    /// It is blocked in one of a 32-bit program, whose calls have other numbers.
    Foreign,
    /// It is blocked in this one.
    Call(Call),
}

/// A system call with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its arguments, whether it has so many or not.
    pub args: [u64; 6],
}

/// Below this a stack pointer is that of a 32-bit program.
const LOW: u64 = 1 << 32;

/// `running`, `-1 SP PC`, or `NR A1 A2 A3 A4 A5 A6 SP PC`, all but the number in hexadecimal.
pub fn parse(text: &str) -> Option<Current> {
    let mut fields = text.split_ascii_whitespace();
    let number = match fields.next()? {
        "running" => return Some(Current::Running),
        number => number.parse::<i64>().ok()?,
    };
    let rest: Vec<u64> = fields.map(|f| u64::from_str_radix(f.strip_prefix("0x")?, 16).ok()).collect::<Option<_>>()?;
    match (number, rest.as_slice()) {
        (-1, [_, _]) => Some(Current::None),
        (0.., [_, _, _, _, _, _, sp, _]) if *sp < LOW => Some(Current::Foreign),
        (0.., [a, b, c, d, e, f, _, _]) => Some(Current::Call(Call { number, args: [*a, *b, *c, *d, *e, *f] })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_with_its_arguments_or_refused() {
        let call = |number, first| Some(Current::Call(Call { number, args: [first, 2, 0xff, 0, 0, 0] }));
        assert_eq!(parse("0 0x3 0x2 0xff 0x0 0x0 0x0 0x7ffd2a505198 0x7fb1630ed503\n"), call(0, 3));
        assert_eq!(parse("running\n"), Some(Current::Running));
        assert_eq!(parse("-1 0x7ffd2a505198 0x7fb1630ed503\n"), Some(Current::None));
        assert_eq!(parse("3 0x3 0x2 0xff 0x0 0x0 0x0 0xffffd198 0xf7fb1630\n"), Some(Current::Foreign), "of 32 bits");
        for bad in
            ["", "x", "0", "0 0x1", "0 1 2 3 4 5 6 7 8", "-1", "-2 0x0 0x0", "0 0x1 0x1 0x1 0x1 0x1 0x1 0x7ffd2a505198"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
