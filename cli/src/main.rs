//! The command line of layerwright.
#![forbid(unsafe_code)]

mod args;
mod context_spec;
mod csv;
mod failure;
mod output_spec;
mod outputs;
mod progress;
mod redact;
mod refused;
mod report;
mod request;
mod signals;

fn main() {
    match args::parse(std::env::args_os()) {
        Ok(c) => println!("{c:?}"),
        Err(args::NotParsed::Clap(e)) => e.exit(),
        Err(e) => println!("{e:?}"),
    }
}
