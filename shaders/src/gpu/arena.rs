//! Where tensors lie in an arena's pages: bookkeeping alone, which knows no
//! device.
//!
//! A request takes the smallest free stretch that holds it, the first one of
//! several; a stretch that is given back joins its free neighbours. Both depend
//! on nothing but the order of the requests, so a step that asks for what the
//! step before asked for gets the same places, and no page has to be added.

use std::collections::{BTreeMap, BTreeSet};

/// A stretch of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub page: usize,
    /// In bytes from the page's start, a multiple of the alignment.
    pub offset: u64,
    /// What the stretch takes of the page: a multiple of the alignment.
    pub bytes: u64,
}

#[derive(Debug)]
struct Page<P> {
    memory: P,
    bytes: u64,
    /// Free stretches: bytes by offset. No two of them touch.
    free: BTreeMap<u64, u64>,
}

/// Pages, and which stretches of them are taken. `P` is a page's memory.
#[derive(Debug)]
pub(super) struct Arena<P> {
    /// A page that was removed leaves its place, so that regions keep theirs.
    pages: Vec<Option<Page<P>>>,
    /// The free stretches of all pages: (bytes, page, offset).
    free: BTreeSet<(u64, usize, u64)>,
    alignment: u64,
    bytes: u64,
    used: u64,
}

impl<P> Arena<P> {
    /// An arena without pages. Offsets and sizes are multiples of `alignment`.
    pub fn new(alignment: u64) -> Arena<P> {
        Arena { pages: Vec::new(), free: BTreeSet::new(), alignment: alignment.max(1), bytes: 0, used: 0 }
    }

    /// What a request of so many bytes takes of a page.
    pub fn rounded(&self, bytes: u64) -> u64 {
        bytes.max(1).next_multiple_of(self.alignment)
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.used
    }

    #[cfg(test)]
    fn pages(&self) -> usize {
        self.pages.iter().flatten().count()
    }

    /// Adds a page.
    pub fn add(&mut self, bytes: u64, memory: P) {
        let place = self.pages.iter().position(Option::is_none).unwrap_or(self.pages.len());
        if place == self.pages.len() {
            self.pages.push(None);
        }
        self.pages[place] = Some(Page { memory, bytes, free: BTreeMap::from([(0, bytes)]) });
        self.free.insert((bytes, place, 0));
        self.bytes += bytes;
    }

    /// Takes the smallest free stretch that holds so many bytes; None where
    /// there is none.
    pub fn take(&mut self, bytes: u64) -> Option<(Region, &P)> {
        let bytes = self.rounded(bytes);
        let found = *self.free.range((bytes, 0, 0)..).next()?;
        let (whole, place, offset) = found;
        let page = self.pages.get_mut(place)?.as_mut()?;
        self.free.remove(&found);
        page.free.remove(&offset);
        if whole > bytes {
            page.free.insert(offset + bytes, whole - bytes);
            self.free.insert((whole - bytes, place, offset + bytes));
        }
        self.used += bytes;
        Some((Region { page: place, offset, bytes }, &page.memory))
    }

    /// Gives a region of [`Arena::take`] back.
    pub fn give(&mut self, region: Region) {
        let Some(page) = self.pages.get_mut(region.page).and_then(Option::as_mut) else { return };
        let (mut start, mut end) = (region.offset, region.offset + region.bytes);
        if let Some((&before, &bytes)) = page.free.range(..start).next_back()
            && before + bytes == start
        {
            page.free.remove(&before);
            self.free.remove(&(bytes, region.page, before));
            start = before;
        }
        if let Some(bytes) = page.free.remove(&end) {
            self.free.remove(&(bytes, region.page, end));
            end += bytes;
        }
        page.free.insert(start, end - start);
        self.free.insert((end - start, region.page, start));
        self.used -= region.bytes;
    }

    /// Removes the pages in which nothing lies, and hands over their memory.
    pub fn remove_free(&mut self) -> Vec<P> {
        let mut removed = Vec::new();
        for (place, slot) in self.pages.iter_mut().enumerate() {
            if let Some(page) = slot.take_if(|page| page.free.get(&0) == Some(&page.bytes)) {
                self.free.remove(&(page.bytes, place, 0));
                self.bytes -= page.bytes;
                removed.push(page.memory);
            }
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    fn offset(arena: &mut Arena<()>, bytes: u64) -> Option<(usize, u64)> {
        arena.take(bytes).map(|(region, _)| (region.page, region.offset))
    }

    #[test]
    fn a_request_takes_the_smallest_stretch_that_holds_it() {
        let mut arena = Arena::new(256);
        arena.add(1024, ());
        arena.add(512, ());
        assert_eq!(offset(&mut arena, 300), Some((1, 0)), "512 bytes are enough");
        assert_eq!(offset(&mut arena, 1), Some((0, 0)));
        assert_eq!(offset(&mut arena, 257), Some((0, 256)), "offsets are multiples of 256");
        assert_eq!(offset(&mut arena, 257), None);
        assert_eq!(offset(&mut arena, 256), Some((0, 768)));
        assert_eq!((arena.bytes(), arena.used(), arena.pages()), (1536, 1536, 2));
        assert_eq!(offset(&mut arena, 1), None);
    }

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut arena = Arena::new(256);
        arena.add(1024, ());
        let regions: Vec<Region> = (0..4).filter_map(|_| Some(arena.take(256)?.0)).collect();
        for (given, largest) in [(0, 256), (2, 256), (1, 768), (3, 1024)] {
            arena.give(regions[given]);
            let fits = arena.take(largest).map(|(region, _)| region).expect("the joined stretch");
            assert_eq!(arena.take(largest + 256), None);
            arena.give(fits);
        }
        assert_eq!(arena.used(), 0);
    }

    #[test]
    fn pages_without_regions_are_removed_and_their_places_are_used_again() {
        let mut arena = Arena::new(256);
        arena.add(512, 'a');
        arena.add(1024, 'b');
        let (kept, page) = arena.take(600).map(|(region, page)| (region, *page)).expect("room");
        assert_eq!((kept.page, page), (1, 'b'));
        assert_eq!(arena.remove_free(), ['a']);
        assert_eq!((arena.bytes(), arena.pages()), (1024, 1));
        arena.add(256, 'c');
        assert_eq!(arena.take(256).map(|(region, page)| (region.page, *page)), Some((0, 'c')));
        arena.give(kept);
        assert_eq!(arena.remove_free(), ['b']);
        assert_eq!(arena.bytes(), 256);
    }

    /// Runs requests that depend on the seed; returns each one's place.
    fn requests(arena: &mut Arena<()>, seed: u64) -> Vec<Region> {
        let random = Key::new(seed, 0, 0);
        let mut live: Vec<Region> = Vec::new();
        let mut all = Vec::new();
        for turn in 0..2000u64 {
            let number = random.word(turn);
            if number % 5 < 3 || live.is_empty() {
                let bytes = u64::from(number >> 8) % 5000;
                let region = match arena.take(bytes) {
                    Some((region, ())) => region,
                    None => {
                        arena.add(arena.rounded(bytes).max(8192), ());
                        arena.take(bytes).expect("a new page").0
                    }
                };
                let ends = region.offset + region.bytes;
                let apart = |other: &Region| {
                    other.page != region.page || other.offset >= ends || other.offset + other.bytes <= region.offset
                };
                assert!(live.iter().all(apart), "{region:?} lies over another");
                assert!(region.offset.is_multiple_of(256) && region.bytes >= bytes);
                live.push(region);
                all.push(region);
            } else {
                arena.give(live.swap_remove(number as usize % live.len()));
            }
            assert_eq!(arena.used(), live.iter().map(|region| region.bytes).sum::<u64>());
        }
        live.into_iter().for_each(|region| arena.give(region));
        all
    }

    #[test]
    fn regions_never_overlap_and_the_same_requests_get_the_same_places() {
        for seed in 0..5 {
            let mut arena = Arena::new(256);
            // Pages that came late may change the places of the turn after.
            requests(&mut arena, seed);
            let second = requests(&mut arena, seed);
            let (bytes, pages) = (arena.bytes(), arena.pages());
            let third = requests(&mut arena, seed);
            assert_eq!((arena.bytes(), arena.pages(), arena.used()), (bytes, pages, 0), "no page was added");
            assert_eq!(third, requests(&mut arena, seed));
            assert_eq!(second.len(), third.len());
            assert_eq!(arena.remove_free().len(), pages);
            assert_eq!(arena.bytes(), 0);
        }
    }
}
