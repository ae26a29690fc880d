//! `inspect` for people.

use std::fmt::Write;

use oci::{Descriptor, History, MediaType, config::ContainerConfig, manifest::Index};

use super::look::{Image, Inspected, Step};
use crate::{call::table, failure::harmless, progress::bytes};

/// So much of a digest tells it from all others of an image.
const DIGEST: usize = 12;
/// Longest instruction in the last column, in characters.
const INSTRUCTION_MAX: usize = 100;

/// The root, what it names if it is an index, and every image.
pub fn shown(name: &str, found: &Inspected) -> String {
    let mut out = String::new();
    let root = &found.root.descriptor;
    line(&mut out, "Name", name);
    line(&mut out, "Digest", &root.digest.to_string());
    line(&mut out, "MediaType", root.media_type.as_str());
    if let Some(index) = &found.index {
        index.annotations.iter().for_each(|pair| line(&mut out, "Annotation", &pair_text(pair)));
        out += "\n";
        out += &manifests(index);
    }
    for image in &found.images {
        out += "\n";
        out += &one(image);
    }
    out
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{:<13}{}", format!("{name}:"), harmless(value).replace('\n', " "));
}

fn pair_text((key, value): (&String, &String)) -> String {
    format!("{key}={value}")
}

fn manifests(index: &Index) -> String {
    let row = |entry: &Descriptor| {
        let platform = entry.platform.as_ref().map_or("-".to_owned(), ToString::to_string);
        let about = entry.annotations.get("vnd.docker.reference.type");
        let what = about.map_or(entry.media_type.as_str(), String::as_str);
        [harmless(&platform), entry.digest.to_string(), bytes(entry.size), harmless(what)]
    };
    let mut rows = vec![["PLATFORM", "DIGEST", "SIZE", "TYPE"].map(str::to_owned)];
    rows.extend(index.manifests.iter().map(row));
    columns(&rows)
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[&str; N]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    table(&rows, 2)
}

fn one(image: &Image) -> String {
    let mut out = String::new();
    line(&mut out, "Platform", &image.platform.to_string());
    line(&mut out, "Manifest", &image.descriptor.digest.to_string());
    line(&mut out, "Config", &image.manifest.config.digest.to_string());
    let layers = image.manifest.layers.len();
    let noun = if layers == 1 { "layer" } else { "layers" };
    line(&mut out, "Size", &format!("{} in {layers} {noun}", bytes(image.size())));
    image.config.created.iter().for_each(|created| line(&mut out, "Created", created));
    settings(&mut out, &image.config.config);
    image.manifest.annotations.iter().for_each(|pair| line(&mut out, "Annotation", &pair_text(pair)));
    out + "\n" + &steps(image)
}

/// What a container of the image is given; what is not set is not shown.
fn settings(out: &mut String, config: &ContainerConfig) {
    let list = |words: &[String]| serde_json::to_string(words).unwrap_or_default();
    let mut text = |name: &str, value: &str| {
        if !value.is_empty() {
            line(out, name, value);
        }
    };
    text("User", &config.user);
    text("WorkingDir", &config.working_dir);
    text("Entrypoint", &config.entrypoint.as_deref().map(list).unwrap_or_default());
    text("Cmd", &config.cmd.as_deref().map(list).unwrap_or_default());
    text("StopSignal", &config.stop_signal);
    config.env.iter().for_each(|variable| text("Env", variable));
    config.exposed_ports.iter().for_each(|port| text("Port", port));
    config.volumes.iter().for_each(|volume| text("Volume", volume));
    config.labels.iter().for_each(|pair| text("Label", &pair_text(pair)));
    config.on_build.iter().for_each(|trigger| text("OnBuild", trigger));
}

/// The history with the layers it made.
fn steps(image: &Image) -> String {
    let mut rows = vec![["LAYER", "SIZE", "TYPE", "INSTRUCTION"].map(str::to_owned)];
    rows.extend(image.steps().iter().map(row));
    columns(&rows)
}

fn row(step: &Step<'_>) -> [String; 4] {
    let dash = || "-".to_owned();
    let [layer, size, kind] = match step.layer {
        None => [dash(), dash(), dash()],
        Some(layer) => [layer.digest.hex()[..DIGEST].to_owned(), bytes(layer.size), kind(&layer.media_type)],
    };
    [layer, size, kind, step.history.map_or_else(dash, instruction)]
}

/// `tar+gzip`
fn kind(media_type: &MediaType) -> String {
    let name = media_type.as_str();
    let end = name.rfind("tar").map_or(name, |place| &name[place..]);
    harmless(&end.replace("tar.", "tar+"))
}

/// The instruction in one line, without what Docker and BuildKit write around it.
fn instruction(history: &History) -> String {
    match history.created_by.is_empty() {
        true => one_line(&history.comment),
        false => one_line(&history.created_by),
    }
}

/// What a history calls a step, cut to what a line holds.
pub fn one_line(created_by: &str) -> String {
    let words: Vec<&str> = created_by.split_whitespace().collect();
    let text = words.join(" ");
    let text = text.strip_prefix("/bin/sh -c #(nop) ").unwrap_or(&text);
    let text = text.strip_suffix(" # buildkit").unwrap_or(text);
    let text = harmless(if text.is_empty() { "-" } else { text }).replace('\n', " ");
    match text.chars().count() > INSTRUCTION_MAX {
        true => text.chars().take(INSTRUCTION_MAX - 3).collect::<String>() + "...",
        false => text,
    }
}
