//! Which layers of a build need no files on disk, those of base images included.
//!
//! A layer that is sealed into a blob can be had from there, now and in later builds; its files are written when
//! somebody reads them all the same. So no files are needed of what a COPY or WORKDIR makes for an image and no other
//! step reads. A layer that nobody seals would be lost with this process, so its files are written at once.
//!
//! A base image on which only such layers stand is looked at, and not unpacked. Where any step reads it on disk it is
//! looked at there, too, so that its blobs are read once.

use std::collections::BTreeSet;

use solver::{
    Graph, Op, VertexId,
    op::{Copy, Source},
};

/// The steps of a graph whose layers are sealed, as part of its targets, and read by no other step. For a build that
/// seals the layers of its images: one that writes files only has none.
pub fn virtual_steps(graph: &Graph) -> BTreeSet<VertexId> {
    let mut sealed = BTreeSet::new();
    for target in &graph.targets {
        for id in chain(graph, target.vertex) {
            sealed.insert(id);
            if let (Op::Merge, Some(linked)) = (&graph.vertex(id).op, graph.vertex(id).inputs.get(1)) {
                sealed.insert(*linked);
            }
        }
    }
    let read = read_steps(graph);
    let can_be_virtual = |id: &VertexId| matches!(graph.vertex(*id).op, Op::Copy(_) | Op::MakeDir(_));
    sealed.difference(&read).copied().filter(can_be_virtual).collect()
}

/// Of steps whose layers need not be on disk, those that stand on an image which no step of the graph needs there.
pub fn looking_steps(graph: &Graph, virtual_steps: &BTreeSet<VertexId>) -> BTreeSet<VertexId> {
    let mut on_disk = read_steps(graph);
    let bottom = |id| chain(graph, id).last();
    for (id, vertex) in graph.vertices() {
        if matches!(vertex.op, Op::Copy(_) | Op::MakeDir(_)) && !virtual_steps.contains(&id) {
            on_disk.extend(bottom(id));
        }
    }
    let is_unread = |id: &VertexId| bottom(*id).is_some_and(|bottom| !on_disk.contains(&bottom));
    virtual_steps.iter().copied().filter(is_unread).collect()
}

/// The steps, and sources, whose files some step reads on disk.
fn read_steps(graph: &Graph) -> BTreeSet<VertexId> {
    let mut read = BTreeSet::new();
    for (_, vertex) in graph.vertices() {
        let inputs: Vec<VertexId> = match &vertex.op {
            Op::Exec(_) => vertex.inputs.clone(),
            Op::Copy(copy) => sources(copy).filter_map(|input| vertex.inputs.get(input).copied()).collect(),
            Op::Source(_) | Op::MakeDir(_) | Op::Merge => Vec::new(),
        };
        for input in inputs.into_iter().filter(|input| !has_content_of_its_own(graph, *input)) {
            // Whoever reads a file system reads all of its layers; what was read before has been followed.
            let unread = chain(graph, input).take_while(|id| !read.contains(id)).collect::<Vec<_>>();
            read.extend(unread);
        }
    }
    read
}

/// The steps that a file system is made of, the last one first.
fn chain(graph: &Graph, last: VertexId) -> impl Iterator<Item = VertexId> {
    std::iter::successors(Some(last), |id| graph.vertex(*id).inputs.first().copied())
}

/// The inputs that files are picked from.
fn sources(copy: &Copy) -> impl Iterator<Item = usize> {
    copy.items.iter().map(|item| item.input)
}

/// Whether files of a source are read where they lie and not in a snapshot.
fn has_content_of_its_own(graph: &Graph, id: VertexId) -> bool {
    matches!(graph.vertex(id).op, Op::Source(Source::Context(_) | Source::Inline(_)))
}

#[cfg(test)]
mod tests {
    use oci::{ImageConfig, Platform};
    use solver::{
        Vertex,
        graph::Target,
        op::{CopyItem, MakeDir, Selector, Timestamps},
    };

    use super::*;

    /// A graph in lines: `scratch` or `image`, `files`, `dir IN`, `copy IN FROM`, `run IN [MOUNTED]...`, `merge IN LINKED`,
    /// by line numbers. The target is the last line unless there are others.
    fn graph(lines: &[&str], targets: &[usize]) -> Graph {
        let mut graph = Graph::default();
        for line in lines {
            let mut words = line.split(' ');
            let name = words.next().expect("a name");
            let inputs = words.map(|number| VertexId(number.parse().expect("a number"))).collect();
            graph.add(Vertex {
                op: op(name),
                inputs,
                platform: Platform::host(),
                label: String::new(),
                span: None,
                ambient_env: Vec::new(),
                use_cache: true,
                written: Default::default(),
            });
        }
        let last = [lines.len() - 1];
        let targets = if targets.is_empty() { &last } else { targets };
        graph.targets = targets
            .iter()
            .map(|vertex| Target {
                platform: Platform::host(),
                vertex: VertexId(*vertex),
                config: ImageConfig::default(),
                base_layers: 0,
                history: Vec::new(),
            })
            .collect();
        graph
    }

    fn op(name: &str) -> Op {
        let timestamps = Timestamps::Auto;
        let item = CopyItem { input: 1, selector: Selector::of_path("f"), unpack: false };
        match name {
            "scratch" | "image" => Op::Source(Source::Scratch),
            "files" => Op::Source(Source::Inline(Default::default())),
            "dir" => Op::MakeDir(MakeDir { path: "/d".to_owned(), owner: String::new(), timestamps }),
            "copy" => Op::Copy(Copy {
                items: vec![item],
                destination: "/".to_owned(),
                into_directory: true,
                chown: None,
                chmod: None,
                timestamps,
            }),
            "merge" => Op::Merge,
            _ => Op::Exec(exec()),
        }
    }

    fn exec() -> solver::op::Exec {
        solver::op::Exec::new(["true"])
    }

    #[test]
    fn what_is_sealed_and_not_read_is_not_written() {
        let rows: &[(&[&str], &[usize], &[usize])] = &[
            (&["scratch", "files", "dir 0", "copy 2 1", "copy 3 1"], &[], &[2, 3, 4]),
            // A command reads all that is below it, and nothing that comes after.
            (&["scratch", "files", "dir 0", "copy 2 1", "run 3", "copy 4 1"], &[], &[5]),
            // Another stage is read; what is read for another purpose is not.
            (&["scratch", "files", "copy 0 1", "copy 0 2"], &[], &[3]),
            (&["scratch", "files", "copy 0 1", "copy 2 1", "copy 0 2"], &[3, 4], &[3, 4]),
            // So is what a command mounts.
            (&["scratch", "files", "copy 0 1", "copy 0 1", "run 2 3", "copy 4 1"], &[], &[5]),
            // What nobody seals.
            (&["scratch", "files", "copy 0 1", "dir 0"], &[], &[3]),
            // COPY --link seals the layer of its copy; what is below is not looked at.
            (&["scratch", "files", "dir 0", "copy 0 1", "merge 2 3"], &[], &[2, 3]),
            (&["scratch", "files", "dir 0", "copy 0 1", "merge 2 3", "run 4"], &[], &[3]),
        ];
        for (lines, targets, expected) in rows {
            let found: Vec<usize> =
                virtual_steps(&graph(lines, targets)).into_iter().map(|id| id.0).collect();
            assert_eq!(found, *expected, "{lines:?}");
        }
    }

    #[test]
    fn an_image_that_is_read_anywhere_is_looked_at_on_disk() {
        let rows: &[(&[&str], &[usize], &[usize])] = &[
            (&["image", "files", "dir 0", "copy 2 1"], &[], &[2, 3]),
            // A command on the same image; on another one.
            (&["image", "files", "copy 0 1", "run 0"], &[2, 3], &[]),
            (&["image", "files", "copy 0 1", "image", "run 3"], &[2, 4], &[2]),
            // What is copied from another image is read there; what is made here is not.
            (&["image", "image", "copy 0 1"], &[], &[2]),
            (&["image", "files", "copy 0 1", "copy 0 2"], &[], &[]),
            // What nobody seals is written on top of it.
            (&["image", "files", "copy 0 1", "dir 0"], &[2], &[]),
            // COPY --link does not look at what it is merged with.
            (&["image", "files", "scratch", "copy 2 1", "merge 0 3", "dir 4"], &[], &[3, 5]),
        ];
        for (lines, targets, expected) in rows {
            let graph = graph(lines, targets);
            let found = looking_steps(&graph, &virtual_steps(&graph));
            let found: Vec<usize> = found.into_iter().map(|id| id.0).collect();
            assert_eq!(found, *expected, "{lines:?}");
        }
    }

    #[test]
    fn a_long_chain_is_followed_once() {
        let mut lines = vec!["scratch".to_owned()];
        lines.extend((0..20_000).map(|below| format!("run {below}")));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert!(virtual_steps(&graph(&lines, &[])).is_empty());
    }
}
