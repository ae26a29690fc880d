//! What it costs at least to make a layer's blob, for `bench/run` to compare with: `packing FORMAT[:LEVEL] TIMES FILE...`
//! takes the files TIMES times as a tar, cuts it, hashes it, compresses the chunks and hashes what becomes of them, with
//! one thread and from memory, and writes the blob to the standard output. `packing FORMAT[:LEVEL] stream` does the same
//! with the standard input, as it comes, with all processors, and tells the blob's digest on the standard error.

use std::{
    env, fs,
    io::{self, Read, Write},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, channel, sync_channel},
    },
    thread,
};

use exporter::{Encoder, GzipLevel, ZstdLevel, chunk::Chunker};
use oci::digest::Sha256Hasher;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [format, times, files @ ..] = &arguments[..] else { return ExitCode::from(2) };
    let Some(encoder) = encoder(format) else { return ExitCode::from(2) };
    let packed = match times.parse() {
        Ok(times) => pack(encoder, times, files),
        Err(_) if times == "stream" => stream(encoder),
        Err(_) => return ExitCode::from(2),
    };
    match packed {
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

/// Cuts in one thread, hashes in two, and compresses in as many as there are processors.
fn stream(encoder: Encoder) -> io::Result<()> {
    let threads = thread::available_parallelism()?.get();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(io::Error::other)?;
    let (to_hasher, chunks) = sync_channel::<Arc<Vec<u8>>>(2 * threads);
    let (to_writer, members) = sync_channel(2 * threads);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut tar = Sha256Hasher::default();
            chunks.iter().for_each(|chunk| tar.update(&chunk));
            tar.finish()
        });
        let written = scope.spawn(move || write(&members));
        pool.in_place_scope(|pool| {
            cut(|chunk| {
                let (chunk, (done, member)) = (Arc::new(chunk), channel());
                let compressed = Arc::clone(&chunk);
                pool.spawn(move |_| {
                    let mut member = Vec::new();
                    encoder.compress(&compressed, &mut member);
                    done.send(member).unwrap_or_default();
                });
                give(&to_hasher, chunk)?;
                give(&to_writer, member)
            })
        })?;
        drop((to_hasher, to_writer));
        written.join().expect("writing does not panic")
    })
}

fn give<T>(taker: &SyncSender<T>, what: T) -> io::Result<()> {
    taker.send(what).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Hands on the chunks of the standard input.
fn cut(mut take: impl FnMut(Vec<u8>) -> io::Result<()>) -> io::Result<()> {
    let (mut input, mut block) = (io::stdin().lock(), vec![0; 1 << 20]);
    let (mut chunker, mut chunk) = (Chunker::default(), Vec::new());
    loop {
        let count = input.read(&mut block)?;
        let mut bytes = &block[..count];
        while !bytes.is_empty() {
            let (taken, ends) = chunker.fill(&mut chunk, bytes);
            bytes = &bytes[taken..];
            if ends {
                take(std::mem::take(&mut chunk))?;
            }
        }
        if count == 0 {
            return if chunk.is_empty() { Ok(()) } else { take(chunk) };
        }
    }
}

/// Writes members in their order.
fn write(members: &Receiver<Receiver<Vec<u8>>>) -> io::Result<()> {
    let (mut out, mut blob) = (io::stdout().lock(), Sha256Hasher::default());
    for member in members {
        let member = member.recv().map_err(io::Error::other)?;
        blob.update(&member);
        out.write_all(&member)?;
    }
    writeln!(io::stderr(), "{}", blob.finish())
}
