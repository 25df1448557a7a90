//! Values at numbered places, each in one of a few queues.

/// The place of a value.
pub(crate) type Index = u32;
const NONE: Index = Index::MAX;

/// Values in doubly linked queues. Every operation takes constant time.
#[derive(Debug)]
pub(crate) struct Arena<Value, const QUEUES: usize> {
    places: Vec<Place<Value>>,
    free: Vec<Index>,
    ends: [Ends; QUEUES],
}

#[derive(Debug)]
struct Place<Value> {
    value: Option<Value>,
    queue: usize,
    before: Index,
    after: Index,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: Index,
    last: Index,
}

impl<Value, const QUEUES: usize> Arena<Value, QUEUES> {
    pub fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), ends: [Ends { first: NONE, last: NONE }; QUEUES] }
    }

    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds a value at the end of a queue.
    pub fn insert(&mut self, value: Value, queue: usize) -> Index {
        let place = Place { value: Some(value), queue, before: NONE, after: NONE };
        let index = if let Some(index) = self.free.pop() {
            self.places[index as usize] = place;
            index
        } else {
            self.places.push(place);
            Index::try_from(self.places.len() - 1).unwrap_or(NONE)
        };
        self.append(index, queue);
        index
    }

    pub fn get(&self, index: Index) -> Option<&Value> {
        self.places.get(index as usize)?.value.as_ref()
    }

    pub fn get_mut(&mut self, index: Index) -> Option<&mut Value> {
        self.places.get_mut(index as usize)?.value.as_mut()
    }

    /// The queue that a value is in.
    pub fn queue(&self, index: Index) -> Option<usize> {
        self.places.get(index as usize).map(|place| place.queue)
    }

    /// The value that is in a queue for longest.
    pub fn first(&self, queue: usize) -> Option<Index> {
        Some(self.ends[queue].first).filter(|index| *index != NONE)
    }

    /// Moves a value to the end of a queue.
    pub fn move_to(&mut self, index: Index, queue: usize) {
        if self.ends[queue].last != index {
            self.detach(index);
            self.append(index, queue);
        }
    }

    pub fn remove(&mut self, index: Index) -> Option<Value> {
        self.get(index)?;
        self.detach(index);
        self.free.push(index);
        self.places[index as usize].value.take()
    }

    fn detach(&mut self, index: Index) {
        let place = &self.places[index as usize];
        let (queue, before, after) = (place.queue, place.before, place.after);
        match before {
            NONE => self.ends[queue].first = after,
            before => self.places[before as usize].after = after,
        }
        match after {
            NONE => self.ends[queue].last = before,
            after => self.places[after as usize].before = before,
        }
    }

    fn append(&mut self, index: Index, queue: usize) {
        let last = std::mem::replace(&mut self.ends[queue].last, index);
        match last {
            NONE => self.ends[queue].first = index,
            last => self.places[last as usize].after = index,
        }
        let place = &mut self.places[index as usize];
        (place.queue, place.before, place.after) = (queue, last, NONE);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against two plain queues.
        #[test]
        fn queues_keep_their_order(steps in prop::collection::vec((0_u8..3, 0_usize..2, 0_usize..64), 0..200)) {
            let mut arena = Arena::<u32, 2>::new();
            let mut model = [VecDeque::<Index>::new(), VecDeque::new()];
            let mut present = Vec::new();
            for (number, (what, queue, choice)) in (0..).zip(steps) {
                let chosen = (!present.is_empty()).then(|| present[choice % present.len()]);
                match (what, chosen) {
                    (0, _) | (_, None) => {
                        let index = arena.insert(number, queue);
                        model[queue].push_back(index);
                        present.push(index);
                    }
                    (1, Some(index)) => {
                        for queue in &mut model {
                            queue.retain(|other| *other != index);
                        }
                        model[queue].push_back(index);
                        arena.move_to(index, queue);
                    }
                    (_, Some(index)) => {
                        for queue in &mut model {
                            queue.retain(|other| *other != index);
                        }
                        present.retain(|other| *other != index);
                        prop_assert!(arena.remove(index).is_some());
                        prop_assert!(arena.get(index).is_none());
                    }
                }
                prop_assert_eq!(arena.len(), present.len());
                for (queue, order) in model.iter().enumerate() {
                    prop_assert_eq!(arena.first(queue), order.front().copied());
                }
            }
        }
    }
}
