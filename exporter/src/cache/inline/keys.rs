//! What an image will say of its own steps (`type=inline`): their definition keys, as the scheduler tells them, and the
//! trees of their layers.
//!
//! Definition keys are known of every step of every build; content keys only of those that ran or whose own record was
//! found. The image must not depend on that, so it holds none of those.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use oci::{
    Descriptor, Layer, MediaType, TreeDigest,
    elsewhere::bring,
    fetch::Fetcher,
    packed::{self, TREE_MEDIA_TYPE},
};
use solver::{Event, Graph, Image, Op, VertexId};

use super::{Inline, InlineStep, STEPS_MAX};
use crate::{
    cache::writer::fits,
    seal::{Events, SealError, Sealer, read_tree},
};

/// The keys of a build's own steps.
pub struct InlineKeys {
    /// The steps of each target's own chain, the lowest first.
    chains: BTreeMap<VertexId, Vec<VertexId>>,
    definitions: Mutex<BTreeMap<VertexId, TreeDigest>>,
    /// Has the store, and brings trees that are not in it.
    fetcher: Fetcher,
    events: Events,
}

/// What an image says of its own steps, and the blobs that must be where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inlined {
    pub(crate) value: serde_json::Value,
    /// Packed trees, with their bytes.
    pub(crate) trees: Vec<(Descriptor, Vec<u8>)>,
}

impl InlineKeys {
    /// Those of the targets of a graph.
    pub fn new(graph: &Graph, fetcher: Fetcher, events: Events) -> Self {
        let parent = |id: &VertexId| graph.vertex(*id).inputs.first().copied();
        let is_step = |id: &VertexId| !matches!(graph.vertex(*id).op, Op::Source(_));
        let chain = |target: VertexId| {
            let mut chain: Vec<_> = std::iter::successors(Some(target), parent).filter(is_step).collect();
            chain.reverse();
            (target, chain)
        };
        let chains = graph.targets.iter().map(|target| chain(target.vertex)).collect();
        Self { chains, definitions: Mutex::default(), fetcher, events }
    }

    /// Hears of what the scheduler does. Does not block.
    pub fn take(&self, event: &Event) {
        let (id, definition) = match event {
            Event::Cached(id, hit) => (*id, hit.definition),
            Event::Missed(id, miss) => (*id, miss.definition),
            _ => return,
        };
        self.definitions.lock().unwrap_or_else(PoisonError::into_inner).insert(id, definition);
    }

    /// What an image says whose layers this sealer makes; nothing, with a warning, where nobody could use it.
    pub(crate) fn of(&self, image: &Image, sealer: &Sealer) -> Result<Option<Inlined>, SealError> {
        if !fits(sealer) {
            return Ok(self.nothing("the layers of the image have the times of SOURCE_DATE_EPOCH"));
        }
        let base = image.target.base_layers;
        let layers = image.snapshot.layers.get(base..).unwrap_or_default();
        let Some(steps) = self.steps(image.target.vertex, layers) else {
            return Ok(self.nothing("not all of its steps are known"));
        };
        if steps.len() > STEPS_MAX {
            return Ok(self.nothing(&format!("it has more than {STEPS_MAX} steps")));
        }
        let mut trees = BTreeMap::new();
        for layer in layers.iter().filter(|layer| !layer.is_empty()) {
            trees.insert(layer.tree(), self.tree(layer.tree())?);
        }
        let named = trees.iter().map(|(tree, (descriptor, _))| (*tree, descriptor.clone()));
        let inline = Inline { encoder: sealer.encoder().id(), base, steps, trees: named.collect() };
        let value = inline.to_value();
        Ok(value.map(|value| Inlined { value, trees: trees.into_values().collect() }))
    }

    fn nothing(&self, why: &str) -> Option<Inlined> {
        (self.events)(Event::Warning(format!("the image holds no cache (type=inline): {why}")));
        None
    }

    fn steps(&self, target: VertexId, layers: &[Layer]) -> Option<Vec<InlineStep>> {
        let chain = self.chains.get(&target)?;
        let definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        if chain.len() != layers.len() {
            return None;
        }
        let step = |(id, layer): (&VertexId, &Layer)| {
            Some(InlineStep { definition: *definitions.get(id)?, layer: layer.tree() })
        };
        chain.iter().zip(layers).map(step).collect()
    }

    fn tree(&self, tree: TreeDigest) -> Result<(Descriptor, Vec<u8>), SealError> {
        bring::tree(&self.fetcher, &tree)?;
        let packed = packed::pack(&read_tree(self.fetcher.store(), tree)?.to_bytes());
        Ok((Descriptor::of(MediaType::Other(TREE_MEDIA_TYPE.to_owned()), &packed), packed))
    }
}

impl std::fmt::Debug for InlineKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InlineKeys").field("chains", &self.chains).finish_non_exhaustive()
    }
}
