//! Generates what the frameworks under test generate from a description of their service. Needs no `protoc`.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let service = Service::builder()
        .package("picom.bench")
        .name("Rpc")
        .method(method("add", "Add", "Pair", "Number").build())
        .method(method("echo", "Echo", "Chunk", "Chunk").build())
        .method(method("items_down", "ItemsDown", "Wanted", "Number").server_streaming().build())
        .method(method("items_up", "ItemsUp", "Number", "Number").client_streaming().build())
        .method(method("chunks_down", "ChunksDown", "Wanted", "Chunk").server_streaming().build())
        .method(method("chunks_up", "ChunksUp", "Chunk", "Number").client_streaming().build())
        .build();
    Builder::new().compile(&[service]);
}

fn method(name: &str, route: &str, input: &str, output: &str) -> tonic_build::manual::MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("crate::peers::tonic::{input}"))
        .output_type(format!("crate::peers::tonic::{output}"))
        .codec_path("tonic_prost::ProstCodec")
}
