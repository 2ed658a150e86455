//! Telling work that nobody waits for it any more.
//!
//! A caller runs work inside [`Stop::during`], and [`Stop::request`] from another thread ends it with
//! [`Error::Interrupted`] at its next [`check`]. The flag belongs to the thread and to those that [`crate::threads`] starts
//! for it, because what takes long (a hash, a sort, a write) lies below calls that have no use for it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Turns of a loop over keys between two checks: far less than a tenth of a second.
const TURNS: u32 = 1 << 16;

thread_local! {
    static CURRENT: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

/// A flag that ends the work which runs [`during`](Stop::during) it.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the work to end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error once it was asked to end.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Runs `work`, in which [`check`] asks this flag.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        within(Some(self.clone()), work)
    }
}

/// The flag of this thread, for a thread that it starts.
pub(crate) fn current() -> Option<Stop> {
    CURRENT.with_borrow(Clone::clone)
}

/// Runs `work` with `flag` as the one of this thread, and puts the one before back, after a panic too.
pub(crate) fn within<T>(flag: Option<Stop>, work: impl FnOnce() -> T) -> T {
    struct Back(Option<Stop>);
    impl Drop for Back {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _back = Back(CURRENT.replace(flag));
    work()
}

/// An error where the caller of this work has asked it to end.
///
/// # Errors
/// [`Error::Interrupted`].
pub(crate) fn check() -> Result<()> {
    CURRENT.with_borrow(|current| current.as_ref().map_or(Ok(()), Stop::check))
}

/// [`check`] once in many turns of a loop, of which this is the `turn`th.
///
/// # Errors
/// [`Error::Interrupted`].
pub(crate) fn check_at(turn: u32) -> Result<()> {
    if turn.is_multiple_of(TURNS) { check() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn the_flag_reaches_the_threads_of_the_work_and_nothing_else() {
        let stop = Stop::default();
        let asked = || crate::threads::run(3, |_| check().is_err());
        assert_eq!(stop.during(asked), [false; 3]);
        stop.request();
        assert_eq!(stop.during(asked), [true; 3]);
        assert_eq!(stop.during(|| Stop::default().during(asked)), [false; 3]);
        catch_unwind(AssertUnwindSafe(|| stop.during(|| panic!("of the work")))).unwrap_err();
        assert_eq!(asked(), [false; 3]);
    }
}
