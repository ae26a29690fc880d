//! Steps of graphs that nobody runs.

use oci::Platform;
use solver::{
    Op, Vertex, VertexId,
    op::{MakeDir, Timestamps},
};

pub fn vertex(op: Op, inputs: Vec<VertexId>) -> Vertex {
    Vertex {
        op,
        inputs,
        platform: platform(),
        label: String::new(),
        span: None,
        ambient_env: Vec::new(),
        use_cache: true,
        written: Default::default(),
    }
}

pub fn directory() -> Op {
    Op::MakeDir(MakeDir { path: "/d".into(), owner: String::new(), timestamps: Timestamps::Auto })
}

pub fn platform() -> Platform {
    "linux/amd64".parse().expect("a platform")
}
