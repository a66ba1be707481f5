//! Compiles the `.proto` files without `protoc`: protox parses them, tonic-prost-build writes the Rust.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 3] = [
    "chancery/common/v1/common.proto",
    "chancery/auth/v1/auth.proto",
    "chancery/delivery/v1/delivery.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("chancery.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
