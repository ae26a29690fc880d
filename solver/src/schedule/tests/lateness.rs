//! Whatever distant caches answer, and whenever: the images are those of some build without them, every step is told one end,
//! every record is written once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    thread,
    time::Duration,
};

use oci::Snapshot;
use proptest::prelude::*;

use super::{
    distant::Ground,
    fake::{Memory, World},
    orders::{build, random_file, some, trouble, troubled},
    solved,
};
use crate::{
    cache::{Key, Record},
    graph::VertexId,
    traits::{Answer, Cancel, DistantCache, Found},
};

/// A distant cache that answers out of order, late, twice, with something else, or not at all.
struct Fickle {
    records: HashMap<Key, Record>,
    seed: u64,
    /// Whether there is an end to what it does without being asked to.
    ends: bool,
}

impl Fickle {
    fn mixed(&self, key: &Key) -> u64 {
        let (Key::Definition(digest) | Key::Content(digest)) = key;
        let word = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight"));
        (word ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    fn answer(&self, key: &Key, cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync)) {
        let mixed = self.mixed(key);
        for _ in 0..(mixed >> 8) % 400 {
            if cancel.is_requested() {
                return;
            }
            thread::yield_now();
        }
        let found = |record: &Record| Found { record: record.clone(), cache: "fickle".to_owned() };
        let found = self.records.get(key).map(found);
        match mixed % 16 {
            0 => {}
            1 => {
                tell(vec![(*key, found.clone())]);
                tell(vec![(*key, None)]);
            }
            2 => tell(vec![(*key, found.map(|found| Found { record: damaged(found.record), ..found }))]),
            3 if !self.ends => {
                while !cancel.is_requested() {
                    thread::yield_now();
                }
            }
            _ => tell(vec![(*key, found)]),
        }
    }
}

fn damaged(mut record: Record) -> Record {
    record.snapshot.layers.clear();
    record
}

impl DistantCache for Fickle {
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync)) {
        let mut keys = keys.to_vec();
        keys.sort_by_key(|key| self.mixed(key));
        thread::scope(|scope| {
            for part in keys.chunks(keys.len().div_ceil(3)) {
                scope.spawn(move || part.iter().for_each(|key| self.answer(key, cancel, tell)));
            }
        });
    }
}

fn fickle(records: impl Iterator<Item = (Key, Record)>, seed: u64) -> Arc<dyn DistantCache> {
    Arc::new(Fickle { records: records.collect(), seed, ends: is_patient(seed) })
}

/// Who waits for all answers must get them.
fn is_patient(seed: u64) -> bool {
    seed.count_ones().is_multiple_of(4)
}

/// Where nobody is patient, time passes at once, or in steps that leave some for what is done meanwhile.
fn ground(seed: u64) -> Ground {
    let tick = Duration::from_millis(if seed.is_multiple_of(2) { 1000 } else { 100 });
    Ground { tick, ..Ground::new(is_patient(seed)) }
}

fn copy(memory: &Memory) -> Memory {
    Memory(memory.0.lock().expect("no panic").clone().into())
}

fn cases() -> u32 {
    if std::env::var_os("LAYERWRIGHT_NIGHTLY").is_some() { 4000 } else { 32 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Steps whose result is always the same, that fail, are forced, or are made for two platforms.
    #[test]
    fn late_answers_change_nothing(
        steps in random_file(),
        trouble in trouble(),
        seed in 1..u64::MAX,
        jobs in 1..5_usize,
        (near, left, right) in any::<(u64, u64, u64)>(),
    ) {
        let (mut file, chains) = build(&steps, "fixed");
        chains.iter().rev().step_by(3).for_each(|(id, _)| { file.target(*id); });
        let (orderly, whole) = (World::default(), Memory::default());
        solved(&file, &orderly, &whole);
        let (file, _) = troubled(&file, &trouble);
        let expected = file.solve(&orderly, &copy(&whole)).map_err(|error| error.failure.message);
        let caches = [
            fickle(some(copy(&whole), left), seed),
            fickle(some(copy(&whole), right), seed.rotate_left(7)),
        ];
        let near = Memory(some(copy(&whole), near & left).collect::<HashMap<_, _>>().into());
        let ground = Ground { world: orderly.disorder(seed), near, jobs, ..ground(seed) };
        let images = ground.build(&file, &caches, &|_| ());
        prop_assert_eq!(images.map_err(|error| error.failure.message), expected);
    }

    /// Whatever is remembered, near and far, of builds that disagree: in one build, every step stands on what the step
    /// below it is.
    #[test]
    fn late_answers_never_mix_what_disagrees(
        steps in random_file(),
        seed in 1..u64::MAX,
        (near, left, right) in any::<(u64, u64, u64)>(),
    ) {
        let (mut file, chains) = build(&steps, "random");
        chains.iter().for_each(|(id, _)| { file.target(*id); });
        let world = World::default();
        let [one, two, three] = [(); 3].map(|()| {
            let memory = Memory::default();
            solved(&file, &world, &memory);
            memory
        });
        let near = Memory(some(one, near & left).collect::<HashMap<_, _>>().into());
        let caches = [fickle(some(two, left), seed), fickle(some(three, right), seed.rotate_left(7))];
        let ground = Ground { world: world.disorder(seed), near, ..ground(seed) };
        let images = ground.build(&file, &caches, &|_| ()).expect("builds");
        let snapshots: BTreeMap<VertexId, Snapshot> = chains.iter().map(|(id, _)| *id).zip(images).collect();
        for (id, parent) in chains {
            if let Some(below) = snapshots.get(&parent) {
                prop_assert_eq!(snapshots[&id].parent(), Some(below.clone()));
            }
        }
    }
}
