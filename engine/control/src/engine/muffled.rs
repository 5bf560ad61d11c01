//! Log lines that come by the thousand when a disk goes away.
//!
//! Owns: how many of them are said in a second. Never: lines that need an answer each.
//! Flow: the engine's lines about torrents -> here -> log; once a second the rest as a number.

/// Lines said in one second; then they are counted.
const LINES_MAX: u32 = 20;

#[derive(Default)]
pub struct Muffled {
    said: u32,
    left_out: u32,
}

impl Muffled {
    pub fn warn(&mut self, line: &str) {
        if self.may_say() {
            tracing::warn!("{line}");
        }
    }

    pub fn info(&mut self, line: &str) {
        if self.may_say() {
            tracing::info!("{line}");
        }
    }

    fn may_say(&mut self) -> bool {
        let may = self.said < LINES_MAX;
        if may {
            self.said += 1;
        } else {
            self.left_out += 1;
        }
        may
    }

    /// Once a second: the next lines are said again.
    pub fn second(&mut self) {
        if self.left_out > 0 {
            tracing::info!("and {} more such lines; `seedring list` shows all", self.left_out);
        }
        *self = Muffled::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_the_next_second_is_heard() {
        let mut muffled = Muffled::default();
        (0..1_000).for_each(|_| muffled.warn("away"));
        assert_eq!((muffled.said, muffled.left_out), (LINES_MAX, 1_000 - LINES_MAX));
        muffled.second();
        assert!(muffled.may_say());
    }
}
