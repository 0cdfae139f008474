//! A panic, in whatever thread, is the end of the instance: the next one takes up every run from what is on disk. One that went
//! on without its store, or with half a thought in its engine, would promise what it cannot keep.

use std::panic;

/// Ends the process at the first panic, after it was told on standard error.
pub fn are_fatal() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
