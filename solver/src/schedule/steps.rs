//! The part of a graph that its targets need, as the scheduler sees it: steps with equal definitions are one step.
//!
//! The *chain* of a step is the step, its first input, that one's first input and so on down to a source: the steps
//! whose layers make up its snapshot.

use std::collections::{BTreeMap, HashMap};

use oci::{Layer, TreeDigest};

use crate::{
    graph::{Graph, VertexId},
    key,
    op::{Op, Source},
};

/// The vertices that the targets need, in graph order.
pub(super) fn needed(graph: &Graph) -> Vec<VertexId> {
    let mut wanted: Vec<bool> = vec![false; graph.vertices().len()];
    graph.targets.iter().for_each(|target| wanted[target.vertex.0] = true);
    for (id, vertex) in graph.vertices().rev() {
        if wanted[id.0] {
            vertex.inputs.iter().for_each(|input| wanted[input.0] = true);
        }
    }
    graph.vertices().map(|(id, _)| id).filter(|id| wanted[id.0]).collect()
}

/// The steps of a build and what is known of them before any runs. Ids are those of the graph.
pub(super) struct Steps<'a> {
    graph: &'a Graph,
    /// What the targets need, in graph order, each step once.
    order: Vec<VertexId>,
    /// All needed vertices that are the same as an earlier one.
    repeated: HashMap<VertexId, VertexId>,
    /// The other way round, in graph order.
    repeats: HashMap<VertexId, Vec<VertexId>>,
    known: HashMap<VertexId, Known>,
    /// Steps by definition.
    defined: HashMap<TreeDigest, VertexId>,
}

struct Known {
    definition: TreeDigest,
    identity: Option<TreeDigest>,
    inputs: Vec<VertexId>,
    /// How many layers the snapshot has.
    length: usize,
    /// Layers of the source at the chain's end.
    base: Vec<Layer>,
    /// The cache may not answer for the step itself.
    forced: bool,
    /// Some step that it needs was forced: what its definition was known for may be of another run.
    below_forced: bool,
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        needed: &[VertexId],
        mut identities: BTreeMap<VertexId, TreeDigest>,
    ) -> Self {
        let mut steps = Self {
            graph,
            order: Vec::new(),
            repeated: HashMap::new(),
            repeats: HashMap::new(),
            known: HashMap::new(),
            defined: HashMap::new(),
        };
        for id in needed {
            let known = steps.learn(*id, identities.remove(id));
            match steps.defined.get(&known.definition) {
                // Files of the user have no snapshot that could stand for those of another place.
                Some(first) if known.identity.is_none() => {
                    let first = *first;
                    steps.repeated.insert(*id, first);
                    steps.repeats.entry(first).or_default().push(*id);
                    steps.known.get_mut(&first).expect("it was seen").forced |= known.forced;
                }
                _ => {
                    steps.defined.insert(known.definition, *id);
                    steps.order.push(*id);
                    steps.known.insert(*id, known);
                }
            }
        }
        steps.spread_forced();
        steps
    }

    fn learn(&self, id: VertexId, identity: Option<TreeDigest>) -> Known {
        let vertex = self.graph.vertex(id);
        let inputs: Vec<VertexId> = vertex.inputs.iter().map(|input| self.same(*input)).collect();
        let keys: Vec<TreeDigest> = inputs.iter().map(|input| self.definition(*input)).collect();
        let (definition, length, base) = match (&vertex.op, inputs.first()) {
            (Op::Source(source), _) => {
                let base = key::source_snapshot(source).layers;
                (key::source_key(source, identity.as_ref()), base.len(), base)
            }
            (_, Some(parent)) => (
                key::definition_key(vertex, &keys),
                self.length(*parent) + 1,
                self.known[parent].base.clone(),
            ),
            (_, None) => unreachable!("every step works on an input"),
        };
        let forced = !vertex.use_cache && !matches!(vertex.op, Op::Source(_));
        Known { definition, identity, inputs, length, base, forced, below_forced: false }
    }

    /// Second pass, since a step may turn out to be the same as a forced one that comes later.
    fn spread_forced(&mut self) {
        for id in &self.order {
            let below = self.known[id].inputs.iter().any(|input| {
                let input = &self.known[input];
                input.forced || input.below_forced
            });
            self.known.get_mut(id).expect("it is in order").below_forced = below;
        }
    }

    /// The step that stands for a vertex.
    pub(super) fn same(&self, id: VertexId) -> VertexId {
        self.repeated.get(&id).copied().unwrap_or(id)
    }

    /// The other vertices that a step stands for.
    pub(super) fn repeats(&self, id: VertexId) -> &[VertexId] {
        self.repeats.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Every step and source once, in graph order.
    pub(super) fn order(&self) -> impl DoubleEndedIterator<Item = VertexId> {
        self.order.iter().copied()
    }

    /// The step with this definition.
    pub(super) fn by_definition(&self, definition: &TreeDigest) -> Option<VertexId> {
        self.defined.get(definition).copied()
    }

    pub(super) fn definition(&self, id: VertexId) -> TreeDigest {
        self.known[&id].definition
    }

    /// What the files of a context or inline source hash to.
    pub(super) fn identity(&self, id: VertexId) -> Option<TreeDigest> {
        self.known[&id].identity
    }

    pub(super) fn inputs(&self, id: VertexId) -> &[VertexId] {
        &self.known[&id].inputs
    }

    pub(super) fn source(&self, id: VertexId) -> Option<&'a Source> {
        match &self.graph.vertex(id).op {
            Op::Source(source) => Some(source),
            _ => None,
        }
    }

    /// The step below in the chain.
    pub(super) fn parent(&self, id: VertexId) -> Option<VertexId> {
        self.inputs(id).first().copied()
    }

    /// How many layers the snapshot has, empty ones included.
    pub(super) fn length(&self, id: VertexId) -> usize {
        self.known[&id].length
    }

    /// The layers of the image at the chain's end.
    pub(super) fn base_layers(&self, id: VertexId) -> &[Layer] {
        &self.known[&id].base
    }

    /// Whether the cache may answer for this step at all.
    pub(super) fn is_forced(&self, id: VertexId) -> bool {
        self.known[&id].forced
    }

    /// The steps whose definition says what their result is.
    pub(super) fn looked_up_by_definition(&self) -> impl Iterator<Item = VertexId> {
        self.order().filter(|id| {
            let known = &self.known[id];
            !known.forced && !known.below_forced && self.source(*id).is_none()
        })
    }

    /// The steps that the targets ask for.
    pub(super) fn targets(&self) -> impl Iterator<Item = VertexId> {
        self.graph.targets.iter().map(|target| self.same(target.vertex))
    }
}
