//! Whatever order steps end in, and whatever the caches know: one graph, one result.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::{
    fake::{Dockerfile, Memory, World},
    solved,
    told::check_events,
};
use crate::{
    cache::{Claim, Key, Maker, Record},
    graph::VertexId,
    traits::{CacheBackend, Cancel},
};

/// Of each vertex: an earlier one to stand on, one to copy from if any, and a command.
pub fn random_file() -> impl Strategy<Value = Vec<(usize, Option<usize>, u8)>> {
    let command = 0..6_u8;
    prop::collection::vec((any::<usize>(), prop::option::of(any::<usize>()), command), 1..40)
}

/// A graph of such steps; and of each step, the one it stands on.
pub fn build(steps: &[(usize, Option<usize>, u8)], verb: &str) -> (Dockerfile, Vec<(VertexId, VertexId)>) {
    let mut file = Dockerfile::default();
    let mut chains = Vec::new();
    let mut ids = vec![file.image("base", "here")];
    for (parent, from, command) in steps {
        let parent = ids[parent % ids.len()];
        ids.push(match from.map(|from| ids[from % ids.len()]) {
            Some(from) if from != parent && *command == 5 => file.link(parent, from, "f1"),
            Some(from) if from != parent && *command == 4 => file.mount(parent, from, "/f2", "fixed f0"),
            Some(from) if from != parent => file.copy(parent, from, &format!("f{}", command % 3)),
            _ if *command == 0 => file.run(parent, "nothing"),
            _ => file.run(parent, &format!("{verb} f{}", command % 3)),
        });
        chains.push((ids[ids.len() - 1], parent));
    }
    (file, chains)
}

/// Part of what is remembered.
pub fn some(cache: Memory, kept: u64) -> impl Iterator<Item = (Key, Record)> {
    let keep = move |key: &Key| {
        let (Key::Definition(digest) | Key::Content(digest)) = key;
        kept >> (digest.as_bytes()[0] % 64) & 1 == 1
    };
    cache.0.into_inner().expect("no panic").into_iter().filter(move |(key, _)| keep(key))
}

/// A cache whose steps are taken by others, the first times that some are asked for.
struct Contended {
    records: Memory,
    taken: std::sync::Mutex<HashMap<oci::TreeDigest, u8>>,
}

impl CacheBackend for Contended {
    fn lookup(&self, keys: &[Key]) -> Vec<Option<Record>> {
        self.records.lookup(keys)
    }

    fn store(&self, record: &Record) {
        self.records.store(record);
    }

    fn claim(&self, content: &oci::TreeDigest, _: &Maker) -> Claim {
        let mut taken = self.taken.lock().expect("no panic");
        let left = taken.entry(*content).or_insert_with(|| if content.as_bytes()[0] < 32 { 2 } else { 0 });
        match left.checked_sub(1) {
            None => Claim::Held(Box::new(())),
            Some(fewer) => {
                *left = fewer;
                Claim::Busy("somebody".to_owned())
            }
        }
    }
}

/// What may be wrong with a build, or asked of it: steps by their place.
#[derive(Debug, Clone)]
pub struct Trouble {
    fails: Option<usize>,
    forced: Vec<usize>,
    foreign: Vec<usize>,
}

pub fn trouble() -> impl Strategy<Value = Trouble> {
    let some = || prop::collection::vec(any::<usize>(), 0..4);
    let fails = prop::option::weighted(0.3, any::<usize>());
    (fails, some(), some()).prop_map(|(fails, forced, foreign)| Trouble { fails, forced, foreign })
}

/// The same graph with steps that fail, are forced, or are made for two platforms.
pub fn troubled(file: &Dockerfile, trouble: &Trouble) -> (Dockerfile, Option<VertexId>) {
    let count = file.0.vertices().len();
    let steps: Vec<VertexId> = file.0.vertices().map(|(id, _)| id).filter(|id| id.0 > 0).collect();
    let at = |number: &usize| steps[number % steps.len()];
    let is_run = |id: &VertexId| matches!(file.0.vertex(*id).op, crate::Op::Exec(_));
    let fails = trouble.fails.as_ref().map(at).filter(is_run);
    let mut other = Dockerfile::default();
    for (id, vertex) in file.0.vertices() {
        let mut vertex = vertex.clone();
        if let (true, crate::Op::Exec(exec)) = (Some(id) == fails, &mut vertex.op) {
            exec.args = vec!["fail".to_owned(), id.0.to_string()];
        }
        vertex.use_cache = !trouble.forced.iter().map(at).any(|forced| forced == id);
        other.0.add(vertex);
    }
    other.0.targets = file.0.targets.clone();
    for id in trouble.foreign.iter().map(at) {
        let foreign = other.on(id, "arm64");
        other.target(foreign);
    }
    assert_eq!(other.0.vertices().len(), count + trouble.foreign.len());
    (other, fails)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_order_in_which_steps_end_changes_nothing(
        steps in random_file(),
        seed in 1..u64::MAX,
        jobs in 1..9_usize,
        kept in any::<u64>(),
    ) {
        let (mut file, chains) = build(&steps, "fixed");
        file.target(chains[chains.len() - 1].0).target(chains[chains.len() / 2].0);
        let (orderly, cache) = (World::default(), Memory::default());
        let expected = solved(&file, &orderly, &cache);
        let cache = Memory(some(cache, kept).collect::<HashMap<_, _>>().into());
        let (world, again) = (World::default().disorder(seed), orderly.disorder(seed));
        let cold = file.solve_with(&world, &[], jobs, &Cancel::default()).expect("builds");
        let warm = file.solve_with(&again, &[&cache], jobs, &Cancel::default()).expect("builds");
        prop_assert_eq!(&cold, &expected);
        prop_assert_eq!(&warm, &expected);
    }

    /// Whatever is remembered of builds that disagree: in one build, every step stands on what the step below it is.
    #[test]
    fn a_build_never_mixes_what_disagrees(steps in random_file(), kept in any::<u64>(), other in any::<u64>()) {
        let (mut file, chains) = build(&steps, "random");
        chains.iter().for_each(|(id, _)| { file.target(*id); });
        let (world, left, right) = (World::default(), Memory::default(), Memory::default());
        solved(&file, &world, &left);
        solved(&file, &world, &right);
        let mixed = Memory(some(left, kept).chain(some(right, other)).collect::<HashMap<_, _>>().into());
        let snapshots: BTreeMap<VertexId, oci::Snapshot> =
            chains.iter().map(|(id, _)| *id).zip(solved(&file, &world, &mixed)).collect();
        for (id, parent) in chains {
            if let Some(below) = snapshots.get(&parent) {
                prop_assert_eq!(snapshots[&id].parent(), Some(below.clone()));
            }
        }
    }

    /// Steps that fail, are forced, are made for two platforms, or are taken by other builders: neither the number of
    /// workers nor the order in which steps end shows in the images, in which failure is reported, or in what is told.
    #[test]
    fn no_trouble_depends_on_the_order(
        steps in random_file(),
        trouble in trouble(),
        seed in 1..u64::MAX,
        jobs in 1..9_usize,
        kept in any::<u64>(),
    ) {
        let (mut file, chains) = build(&steps, "fixed");
        chains.iter().rev().step_by(3).for_each(|(id, _)| { file.target(*id); });
        let whole = Memory::default();
        let orderly = World::default();
        solved(&file, &orderly, &whole);
        let (file, _) = troubled(&file, &trouble);
        let run = |world: &World, cache: &dyn CacheBackend, jobs| {
            world.events();
            let solved = file.solve_with(world, &[cache], jobs, &Cancel::default());
            check_events(&file, &world.events(), solved.is_ok());
            solved.map_err(|error| error.failure.message)
        };
        let some: HashMap<_, _> = some(whole, kept).collect();
        let copy = || Memory(some.clone().into());
        let expected = run(&orderly, &copy(), 1);
        let world = orderly.disorder(seed);
        let contended = Contended { records: copy(), taken: Default::default() };
        prop_assert_eq!(run(&world, &contended, jobs), expected);
    }
}
