//! What it costs at least to make a layer's blob, for `bench/run` to compare with: `packing FORMAT[:LEVEL] TIMES FILE...`
//! takes the files TIMES times as a tar, cuts it, hashes it, compresses the chunks and hashes what becomes of them, with
//! one thread and from memory, and writes the blob to the standard output.

use std::{
    env, fs,
    io::{self, Write},
    process::ExitCode,
};

use exporter::{Encoder, GzipLevel, ZstdLevel, chunk::Chunker};
use oci::digest::Sha256Hasher;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [format, times, files @ ..] = &arguments[..] else { return ExitCode::from(2) };
    let (Some(encoder), Ok(times)) = (encoder(format), times.parse()) else { return ExitCode::from(2) };
    match pack(encoder, times, files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn encoder(text: &str) -> Option<Encoder> {
    let (format, level) = match text.split_once(':') {
        None => (text, None),
        Some((format, level)) => (format, Some(level.parse().ok()?)),
    };
    match format {
        "gzip" => Some(Encoder::Gzip(level.map_or(Some(GzipLevel::DEFAULT), GzipLevel::new)?)),
        "zstd" => Some(Encoder::Zstd(level.map_or(Some(ZstdLevel::DEFAULT), ZstdLevel::new)?)),
        _ => None,
    }
}

fn pack(encoder: Encoder, times: usize, files: &[String]) -> io::Result<()> {
    let files = files.iter().map(fs::read).collect::<io::Result<Vec<_>>>()?;
    let mut out = io::stdout().lock();
    let (mut chunker, mut chunk, mut member) = (Chunker::default(), Vec::new(), Vec::new());
    let (mut tar, mut blob) = (Sha256Hasher::default(), Sha256Hasher::default());
    let mut end = |chunk: &mut Vec<u8>| {
        tar.update(chunk);
        encoder.compress(chunk, &mut member);
        blob.update(&member);
        chunk.clear();
        out.write_all(&member)
    };
    for mut bytes in std::iter::repeat_n(&files, times).flatten().map(Vec::as_slice) {
        while !bytes.is_empty() {
            let (taken, ends) = chunker.fill(&mut chunk, bytes);
            bytes = &bytes[taken..];
            if ends {
                end(&mut chunk)?;
            }
        }
    }
    if !chunk.is_empty() {
        end(&mut chunk)?;
    }
    tar.finish();
    blob.finish();
    Ok(())
}
