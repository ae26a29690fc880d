//! Runs a harness of `parser::fuzz` on mutations of a corpus, for a time, on any stable compiler:
//! `cargo run -p parser --example fuzz -- TARGET CORPUS SECONDS [SEED]`.
//!
//! It is deterministic for a seed, but for where the time ends. An input whose signature is new joins those that are
//! mutated; at the end fifty of them, short ones and long ones, are kept in CORPUS. An input that panics, or takes
//! longer than ten seconds, is written to the working directory and ends the run with an error.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of its own: it reads files, the clock and its arguments"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use parser::fuzz::{Harness, TARGETS};

/// Bytes an input may have.
const MAX_INPUT: usize = 4096;

/// Inputs that are kept in the corpus: few enough to be part of a repository.
const MAX_CORPUS: usize = 50;

/// Bytes an input may have that is kept.
const MAX_KEPT: usize = 1024;

/// Inputs that are mutated; more of them teach little.
const MAX_POOL: usize = 20_000;

/// An input that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (target, corpus, seconds, seed) = match arguments.as_slice() {
        [target, corpus, seconds] => (target, corpus, seconds, "1"),
        [target, corpus, seconds, seed] => (target, corpus, seconds, seed.as_str()),
        _ => return refuse("usage: fuzz TARGET CORPUS SECONDS [SEED]"),
    };
    let Some((_, harness)) = TARGETS.iter().find(|(name, _)| name == target) else {
        return refuse(&format!("the targets are {:?}", TARGETS.map(|(name, _)| name)));
    };
    let (Ok(seconds), Ok(seed)) = (seconds.parse(), seed.parse()) else {
        return refuse("SECONDS and SEED are numbers");
    };
    match run(target, *harness, Path::new(corpus), Duration::from_secs(seconds), seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => refuse(&problem),
    }
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}

fn run(target: &str, harness: Harness, corpus: &Path, time: Duration, seed: u64) -> Result<(), String> {
    let about_corpus = |error: io::Error| format!("{}: {error}", corpus.display());
    let mut pool = read(corpus).map_err(about_corpus)?;
    pool.push(Vec::new());
    let mut random = Random(seed.max(1));
    let mut smallest: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for input in &pool {
        let signature = attempt(target, harness, input)?;
        smallest.entry(signature).or_insert_with(|| input.clone());
    }
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let input = mutated(&pool, &mut random);
        count += 1;
        let signature = attempt(target, harness, &input)?;
        match smallest.get(&signature) {
            Some(known) if known.len() <= input.len() => continue,
            Some(_) => {}
            None if pool.len() < MAX_POOL => pool.push(input.clone()),
            None => {}
        }
        smallest.insert(signature, input);
    }
    let kept = keep(corpus, smallest.into_values().collect()).map_err(about_corpus)?;
    println!("{target}: {count} inputs, {} in the pool, {kept} kept", pool.len());
    Ok(())
}

/// The inputs of a corpus, in the order of their names.
fn read(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    fs::create_dir_all(corpus)?;
    let paths = fs::read_dir(corpus)?.map(|entry| entry.map(|entry| entry.path()));
    let paths: BTreeSet<_> = paths.collect::<io::Result<_>>()?;
    paths.into_iter().map(fs::read).collect()
}

/// Runs the harness; what it does wrong is written down.
fn attempt(target: &str, harness: Harness, input: &[u8]) -> Result<u64, String> {
    let start = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| harness(input)));
    let problem = match result {
        Ok(signature) if start.elapsed() < LIMIT => return Ok(signature),
        Ok(_) => "hangs",
        Err(_) => "panics",
    };
    let name = format!("{target}-{problem}-{:016x}", checksum(input));
    let written = fs::write(&name, input);
    Err(format!("{target} {problem}: see {name} ({written:?})"))
}

/// Replaces the corpus by a choice among the inputs.
fn keep(corpus: &Path, mut inputs: Vec<Vec<u8>>) -> io::Result<usize> {
    inputs.retain(|input| input.len() <= MAX_KEPT);
    inputs.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    let step = inputs.len().div_ceil(MAX_CORPUS).max(1);
    let inputs: Vec<Vec<u8>> = inputs.into_iter().step_by(step).collect();
    let names: BTreeSet<String> = inputs.iter().map(|input| format!("{:016x}", checksum(input))).collect();
    for entry in fs::read_dir(corpus)? {
        let entry = entry?;
        if !names.contains(&*entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    for input in &inputs {
        fs::write(corpus.join(format!("{:016x}", checksum(input))), input)?;
    }
    Ok(inputs.len())
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// What the language is made of.
const WORDS: [&str; 64] = [
    "FROM ",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "ARG ",
    "LABEL ",
    "CMD ",
    "ENTRYPOINT ",
    "EXPOSE ",
    "VOLUME ",
    "USER ",
    "WORKDIR ",
    "SHELL ",
    "STOPSIGNAL ",
    "HEALTHCHECK ",
    "ONBUILD ",
    "MAINTAINER ",
    " AS ",
    "NONE",
    "--from=",
    "--mount=type=",
    "--chown=",
    "--link",
    "--exclude=",
    "--platform=",
    "--interval=1s ",
    "# escape=`\n",
    "# check=",
    "# syntax=",
    "skip=all",
    "error=true",
    "<<EOF",
    "<<-E",
    "\nEOF\n",
    "\nE\n",
    "<<\"A\"",
    "\n\tE\n",
    "\\\n",
    "`\n",
    "\r\n",
    "\n\n",
    "${",
    "}",
    "${a:-",
    "${b:+",
    "${long##*",
    "${long%%",
    "${a//",
    "${a?",
    "$a",
    "$",
    "'",
    "\"",
    "[\"",
    "\", \"",
    "\"]",
    "**",
    "**/",
    "!",
    "[^a]",
    "[a-z]",
    "target=/x,",
    "\u{feff}é\u{2028}",
];

fn mutated(pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        match random.below(7) {
            0 => input.insert(at, random.byte()),
            1 if at < input.len() => input[at] = random.byte(),
            2 => drop(input.drain(at..(at + random.below(16)).min(input.len()))),
            3 | 4 => drop(input.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            5 => {
                let other = &pool[random.below(pool.len())];
                let (start, length) = (random.below(other.len() + 1), random.below(64));
                let part = other[start..(start + length).min(other.len())].to_vec();
                drop(input.splice(at..at, part));
            }
            _ => {
                let part = input[at..(at + random.below(32)).min(input.len())].to_vec();
                (0..random.below(8)).for_each(|_| drop(input.splice(at..at, part.iter().copied())));
            }
        }
        input.truncate(MAX_INPUT);
    }
    input
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 24) as u8
    }
}
