//! Owns: what the load itself needs, and whether it was the limit of what was measured.
//! Never: knows the target. Flow: measure reads before and after the window -> `Load` in the
//! outcome.

use std::fs;

use crate::probe::own_cpu_seconds;

/// Of the time that its threads have: from here on the load is taken for the limit.
pub const BUSY_MAX: f64 = 0.9;

/// CPU time of this process so far, and time in which its threads could run and had no core.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strain {
    pub cpu_seconds: f64,
    pub waiting_seconds: f64,
}

impl Strain {
    pub fn now() -> Self {
        Strain { cpu_seconds: own_cpu_seconds(), waiting_seconds: waiting_seconds() }
    }

    pub fn since(self, before: Strain) -> Self {
        Strain {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            waiting_seconds: (self.waiting_seconds - before.waiting_seconds).max(0.0),
        }
    }

    /// In words, where this much in a window of so many seconds was the limit.
    pub fn was_limit(self, seconds: f64, threads: usize) -> Option<String> {
        let of_threads = |spent: f64| spent / seconds / threads.max(1) as f64;
        let (busy, waiting) = (of_threads(self.cpu_seconds), of_threads(self.waiting_seconds));
        (busy + waiting >= BUSY_MAX).then(|| {
            format!(
                "the load was the limit, not the target: its {threads} thread(s) were on a core \
                 for {:.0} % of the window and waited for one for {:.0} %; give it more \
                 (--threads) or a core of its own",
                100.0 * busy,
                100.0 * waiting
            )
        })
    }
}

/// The second number of each thread's schedstat, nanoseconds; 0 where the kernel does not keep it.
fn waiting_seconds() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let waited = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    waited.sum::<u64>() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_and_waiting_together_are_the_limit() {
        let strain =
            |cpu_seconds: f64, waiting_seconds: f64| Strain { cpu_seconds, waiting_seconds };
        assert_eq!(strain(1.7, 0.0).was_limit(2.0, 1), None);
        assert!(strain(1.9, 0.0).was_limit(2.0, 1).is_some());
        assert_eq!(strain(1.9, 0.0).was_limit(2.0, 2), None);
        let words = strain(0.9, 1.0).was_limit(2.0, 1).expect("it waited for the other half");
        assert!(words.contains("45 %") && words.contains("50 %"), "{words}");
    }
}
