//! The in-flight table: what the kernel still uses, and for whom.
//!
//! Owns: descriptor, memory and kernel-visible structures of each operation until its last
//! completion; the name (index and generation) that travels through the kernel.
//! Never: kernel calls. Flow: `submit` occupies, completions look up, the last one vacates.

use std::collections::HashMap;

use crate::op::Token;

const NONE: u32 = u32::MAX;

/// A slot's name. The generation tells a late completion of a former use apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotId {
    index: u32,
    generation: u32,
}

impl SlotId {
    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn from_user_data(user_data: u64) -> SlotId {
        SlotId { index: user_data as u32, generation: (user_data >> 32) as u32 }
    }
}

/// What an operation holds while it is in flight.
pub(crate) trait Held {
    /// Whether `Io::cancel` finds it by its token.
    fn is_cancellable(&self) -> bool;
}

struct Slot<W> {
    generation: u32,
    token: Token,
    /// The next cancellable slot with the same token.
    next_same: u32,
    work: Option<W>,
}

pub(crate) struct Slots<W> {
    slots: Vec<Slot<W>>,
    vacant: Vec<u32>,
    max: u32,
    /// Heads of the chains of cancellable operations.
    by_token: HashMap<Token, u32>,
}

impl<W: Held> Slots<W> {
    pub(crate) fn new(max: u32) -> Slots<W> {
        assert!(max > 0 && max < NONE, "a table of {max} operations");
        Slots { slots: Vec::new(), vacant: Vec::new(), max, by_token: HashMap::new() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.vacant.is_empty() && self.slots.len() == self.max as usize
    }

    pub(crate) fn occupied(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// The table must not be full.
    pub(crate) fn occupy(&mut self, token: Token, work: W) -> SlotId {
        assert!(!self.is_full(), "the caller asked is_full");
        let index = self.vacant.pop().unwrap_or_else(|| {
            if self.slots.len() == self.slots.capacity() {
                // An eighth at a time: doubled, half of a large table would lie idle.
                self.slots.reserve_exact(self.slots.len() / 8 + 64);
            }
            self.slots.push(Slot { generation: 0, token, next_same: NONE, work: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.work.is_none(), "a vacant slot is empty");
        slot.token = token;
        slot.next_same = NONE;
        if work.is_cancellable()
            && let Some(head) = self.by_token.insert(token, index)
        {
            slot.next_same = head;
        }
        slot.work = Some(work);
        SlotId { index, generation: slot.generation }
    }

    pub(crate) fn token(&self, id: SlotId) -> Token {
        self.slots[id.index as usize].token
    }

    /// `None`: the slot was vacated since (or never was).
    pub(crate) fn work_mut(&mut self, id: SlotId) -> Option<&mut W> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.work.as_mut() } else { None }
    }

    /// Takes the work out for a further stage; `put` follows before anything else.
    pub(crate) fn take(&mut self, id: SlotId) -> Option<W> {
        let slot = &mut self.slots[id.index as usize];
        assert!(slot.generation == id.generation, "the operation is in flight");
        let work = slot.work.take();
        let chained = work.as_ref().is_some_and(W::is_cancellable);
        assert!(!chained, "a further stage does not touch the chain of its token");
        work
    }

    pub(crate) fn put(&mut self, id: SlotId, work: W) {
        let slot = &mut self.slots[id.index as usize];
        assert!(slot.generation == id.generation && slot.work.is_none(), "taken before");
        assert!(!work.is_cancellable(), "a further stage does not touch the chain of its token");
        slot.work = Some(work);
    }

    /// The last completion came.
    pub(crate) fn vacate(&mut self, id: SlotId) -> W {
        let slot = &mut self.slots[id.index as usize];
        assert!(slot.generation == id.generation, "an operation ends once");
        let work = slot.work.take().expect("invariant: a slot of this generation is occupied");
        slot.generation = slot.generation.wrapping_add(1);
        let (token, next) = (slot.token, slot.next_same);
        if work.is_cancellable() {
            self.unchain(token, id.index, next);
        }
        self.vacant.push(id.index);
        work
    }

    fn unchain(&mut self, token: Token, index: u32, next: u32) {
        let head = self.by_token.get_mut(&token).expect("invariant: a cancellable is chained");
        if *head == index {
            if next == NONE {
                self.by_token.remove(&token);
            } else {
                *head = next;
            }
            return;
        }
        let mut at = *head;
        while self.slots[at as usize].next_same != index {
            at = self.slots[at as usize].next_same;
        }
        self.slots[at as usize].next_same = next;
    }

    /// Operations with this token that can be cancelled.
    pub(crate) fn cancellable(&self, token: Token) -> impl Iterator<Item = SlotId> {
        let mut at = self.by_token.get(&token).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            let slot = self.slots.get(at as usize)?;
            let id = SlotId { index: at, generation: slot.generation };
            at = slot.next_same;
            Some(id)
        })
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = SlotId> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.work.is_some())
            .map(|(index, slot)| SlotId { index: index as u32, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Receive;

    impl Held for Receive {
        fn is_cancellable(&self) -> bool {
            true
        }
    }

    #[test]
    fn names_survive_the_kernel_and_tell_uses_apart() {
        let mut slots = Slots::new(2);
        let first = slots.occupy(Token(1), Receive);
        assert_eq!(SlotId::from_user_data(first.user_data()), first);
        slots.vacate(first);
        let second = slots.occupy(Token(1), Receive);
        assert_ne!(first.user_data(), second.user_data());
        assert!(slots.work_mut(first).is_none(), "a late completion finds nothing");
        assert!(slots.work_mut(second).is_some());
    }

    #[test]
    fn a_token_finds_its_cancellable_operations() {
        let mut slots = Slots::new(8);
        let ids: Vec<_> = [7, 7, 9, 7].map(|token| slots.occupy(Token(token), Receive)).into();
        let of =
            |slots: &Slots<Receive>, token| slots.cancellable(Token(token)).collect::<Vec<_>>();
        assert_eq!(of(&slots, 7), [ids[3], ids[1], ids[0]]);
        slots.vacate(ids[1]);
        assert_eq!(of(&slots, 7), [ids[3], ids[0]]);
        slots.vacate(ids[3]);
        slots.vacate(ids[0]);
        assert!(of(&slots, 7).is_empty());
        assert_eq!(of(&slots, 9), [ids[2]]);
        assert_eq!((slots.occupied(), slots.is_full()), (1, false));
    }
}
