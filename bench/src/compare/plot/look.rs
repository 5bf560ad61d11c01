//! Owns: what a target looks like: its colour and mark, the same in every picture.
//! Never: depends on who else is in the picture. Flow: a series' owner -> `Look`.
//!
//! Colours are of Okabe and Ito's set and Tol's muted one, which people who are colour-blind tell
//! apart; with twelve of them marks help: neighbours in colour have different ones. What else is
//! told of the same target has its colour, and another dash.

use clap::ValueEnum as _;

use super::ink::Ink;
use crate::compare::kind::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Circle,
    Square,
    Triangle,
    Diamond,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub color: &'static str,
    pub dash: &'static str,
    mark: Mark,
}

/// The first is a line without gaps.
const DASHES: [&str; 4] = ["", "8 4", "2 3", "10 3 2 3"];

/// `turn`: which of several series of this owner.
pub fn of(owner: &str, turn: usize) -> Look {
    // The longest name: one is the beginning of another.
    let names = Kind::value_variants().iter().map(|kind| (kind, kind.to_string()));
    let known = names.filter(|(_, name)| owner.starts_with(name.as_str()));
    let kind = known.max_by_key(|(_, name)| name.len()).map(|(kind, _)| *kind);
    let (color, mark) = match kind {
        Some(Kind::Iperf3) | None => ("#000000", Mark::Circle),
        Some(Kind::Nginx) => ("#777777", Mark::Square),
        Some(Kind::Bare) => ("#000000", Mark::Diamond),
        Some(Kind::Seedring) => ("#0072b2", Mark::Circle),
        Some(Kind::SeedringEpoll) => ("#56b4e9", Mark::Diamond),
        Some(Kind::TokioUring) => ("#661100", Mark::Triangle),
        Some(Kind::Libtorrent) => ("#d55e00", Mark::Square),
        Some(Kind::Qbittorrent) => ("#e69f00", Mark::Triangle),
        Some(Kind::Rtorrent) => ("#009e73", Mark::Diamond),
        Some(Kind::Transmission) => ("#cc79a7", Mark::Circle),
        Some(Kind::Rqbit) => ("#332288", Mark::Triangle),
        Some(Kind::Vortex) => ("#882255", Mark::Square),
        Some(Kind::Aria2) => ("#999933", Mark::Diamond),
        Some(Kind::Sha1sum) => ("#777777", Mark::Triangle),
    };
    Look { color, dash: DASHES[turn % DASHES.len()], mark }
}

impl Look {
    pub fn put_mark(self, ink: &mut Ink, (x, y): (f64, f64)) {
        let color = self.color;
        let polygon = |corners: &[(f64, f64)]| {
            let corners: Vec<String> =
                corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
            format!("<polygon points=\"{}\" fill=\"{color}\"/>", corners.join(" "))
        };
        ink.line(&match self.mark {
            Mark::Circle => {
                format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{color}\"/>")
            }
            Mark::Square => polygon(&[(-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)]),
            Mark::Triangle => polygon(&[(0.0, -4.4), (4.2, 3.2), (-4.2, 3.2)]),
            Mark::Diamond => polygon(&[(0.0, -4.8), (4.4, 0.0), (0.0, 4.8), (-4.4, 0.0)]),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_looks_the_same_whatever_is_told_of_it() {
        let seedring = of("seedring", 0);
        assert_eq!(of("seedring, direct_io: off", 0), seedring);
        assert_eq!(of("seedring, default settings", 1).color, seedring.color);
        assert_ne!(of("seedring, default settings", 1).dash, seedring.dash);
        assert_ne!(of("seedring on epoll", 0).color, seedring.color);
        let others: Vec<Look> =
            Kind::value_variants().iter().map(|kind| of(&kind.to_string(), 0)).collect();
        for (at, look) in others.iter().enumerate() {
            assert!(!others[..at].contains(look), "{look:?} is another's");
        }
    }
}
