//! What differs, for people: `/etc/built  content: line 1: "Sun 09:20:01" → "Sun 09:20:07"`

use std::fmt::Write;

use executor::compare::{Change, Field, Moment, Value, excerpt::Excerpt, settings::Setting};
use exporter::assemble::rfc3339;
use oci::Descriptor;

use super::{Comparison, Found, How, ImageDifference, StepDifference, layers::LayerChanges};
use crate::{failure::harmless, inspect::one_line, progress::bytes};

/// Characters of a value that are shown.
const VALUE_MAX: usize = 100;

/// All of it; of a layer the first `limit` paths, and all where that is 0.
pub fn shown(comparison: &Comparison, limit: usize) -> String {
    let mut out = String::new();
    for (name, root) in &comparison.names {
        line(&mut out, &format!("{}  {}", root.digest, harmless(name)));
    }
    if comparison.is_same() {
        return out + "\nThey are the same.\n";
    }
    section(&mut out, "index", &comparison.index);
    for image in &comparison.images {
        difference(&mut out, image, limit);
    }
    if comparison.index.is_empty() && comparison.images.is_empty() {
        out += "\nThe images are the same; what names them is written differently.\n";
    }
    out
}

/// Where two images begin to differ, in a few words: `made by [4/6] RUN date > /built: /built, content`
pub fn first_cause(comparison: &Comparison) -> Option<String> {
    let image = comparison.images.first()?;
    let Found::Both { settings, steps } = &image.found else {
        return Some(format!("that only one has an image for {}", image.platform));
    };
    let Some(step) = steps.first() else {
        return settings.first().map(|setting| format!("the setting {}", setting_text(setting)));
    };
    let made = format!("made by [{}/{}] {}", step.number, step.of, one_line(&step.instruction));
    let change = match &step.how {
        How::Made { changes: Some(found), .. } => found.changes.first().map(|change| (found, change)),
        _ => None,
    };
    Some(match change {
        Some((found, change)) => {
            format!("{made}: {}, {}", path(&change.path), fields(change, found.excerpts.get(&change.path)))
        }
        None => made,
    })
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a string takes everything");
}

fn section(out: &mut String, title: &str, settings: &[Setting]) {
    if settings.is_empty() {
        return;
    }
    line(out, &format!("\n{title}"));
    settings.iter().for_each(|setting| line(out, &format!("  {}", setting_text(setting))));
}

fn difference(out: &mut String, image: &ImageDifference, limit: usize) {
    let platform = &image.platform;
    match &image.found {
        Found::First => line(out, &format!("\n{platform}  only in the first")),
        Found::Second => line(out, &format!("\n{platform}  only in the second")),
        Found::Both { settings, steps } if settings.is_empty() && steps.is_empty() => {
            line(out, &format!("\n{platform}  the same image, written differently"));
        }
        Found::Both { settings, steps } => {
            section(out, &format!("{platform}  settings"), settings);
            steps.iter().for_each(|step| step_text(out, step, limit));
        }
    }
}

fn step_text(out: &mut String, step: &StepDifference, limit: usize) {
    line(out, &format!("\n[{}/{}] {}", step.number, step.of, one_line(&step.instruction)));
    match &step.how {
        How::First => line(out, "  only in the first"),
        How::Second => line(out, "  only in the second"),
        How::Layer { is_first: true } => line(out, "  it made a layer in the first only"),
        How::Layer { is_first: false } => line(out, "  it made a layer in the second only"),
        How::Packed(blobs) => {
            let [one, other] = [&blobs[0], &blobs[1]].map(blob);
            line(out, &format!("  the same files, packed differently: {one} → {other}"));
        }
        How::Made { settings, changes } => {
            settings.iter().for_each(|setting| line(out, &format!("  {}", setting_text(setting))));
            changes.iter().for_each(|changes| layer(out, changes, limit));
        }
    }
}

fn blob(layer: &Descriptor) -> String {
    format!("{} of {}", bytes(layer.size), harmless(layer.media_type.as_str()))
}

fn layer(out: &mut String, found: &LayerChanges, limit: usize) {
    if found.changes.is_empty() {
        line(out, "  the same entries, in another order or written differently");
    }
    let shown = if limit == 0 { found.changes.len() } else { limit };
    for change in found.changes.iter().take(shown) {
        line(out, &format!("  {}  {}", path(&change.path), fields(change, found.excerpts.get(&change.path))));
    }
    let left = found.changes.len().saturating_sub(shown);
    if left > 0 {
        line(out, &format!("  ... and {left} more (--limit 0 shows all)"));
    }
}

fn path(path: &[u8]) -> String {
    format!("/{}", harmless(&String::from_utf8_lossy(path)).replace('\n', " "))
}

fn fields(change: &Change, excerpt: Option<&Excerpt>) -> String {
    change.fields.iter().map(|found| field(found, excerpt)).collect::<Vec<_>>().join(", ")
}

/// One thing that differs, in a few words.
fn field(field: &Field, excerpt: Option<&Excerpt>) -> String {
    match field {
        Field::OnlyFirst(noun) => format!("only in the first ({noun})"),
        Field::OnlySecond(noun) => format!("only in the second ({noun})"),
        Field::Kind(one, other) => format!("{one} → {other}"),
        Field::Content(one, other) => content(*one, *other, excerpt),
        Field::Target(one, other) => format!("target {} → {}", target(one), target(other)),
        Field::Device(one, other) => format!("device {}:{} → {}:{}", one.0, one.1, other.0, other.1),
        Field::Mode(one, other) => format!("mode {one:04o} → {other:04o}"),
        Field::Owner(one, other) => format!("owner {}:{} → {}:{}", one.0, one.1, other.0, other.1),
        Field::Time(one, other) => format!("mtime {} → {}", moment(*one), moment(*other)),
        Field::Attribute(name, one, other) => {
            let [one, other] = [one, other].map(|value| attribute(value.as_ref()));
            format!("attribute {} {one} → {other}", harmless(&String::from_utf8_lossy(name)))
        }
        Field::Opaque(true, _) => "hides what is below in the first only".to_owned(),
        Field::Opaque(false, _) => "hides what is below in the second only".to_owned(),
    }
}

fn content(one: u64, other: u64, excerpt: Option<&Excerpt>) -> String {
    let sizes = if one == other { String::new() } else { format!(" ({} → {})", bytes(one), bytes(other)) };
    let place = excerpt.map(|Excerpt { offset, line, first, second }| {
        let place = line.map_or_else(|| format!("byte {offset}"), |line| format!("line {line}"));
        format!(", {place}: {} → {}", harmless(first), harmless(second))
    });
    format!("content{sizes}{}", place.unwrap_or_default())
}

fn target(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

/// Hexadecimal digits, as far as the value is kept.
pub fn attribute(value: Option<&Value>) -> String {
    let Some(Value { beginning, length, .. }) = value else { return "-".to_owned() };
    let digits: String = beginning.iter().map(|byte| format!("{byte:02x}")).collect();
    if *length > beginning.len() { format!("{digits}... ({length} bytes)") } else { digits }
}

/// `2000-01-01T00:00:00Z`, with its nanoseconds where there are any.
pub fn moment(moment: Moment) -> String {
    let seconds = rfc3339(moment.seconds);
    match moment.nanoseconds {
        0 => seconds,
        nanoseconds => format!("{}.{nanoseconds:09}Z", seconds.trim_end_matches('Z')),
    }
}

fn setting_text(setting: &Setting) -> String {
    let value = |value: &Option<String>| value.as_deref().map_or("-".to_owned(), cut);
    format!("{}  {} → {}", harmless(&setting.name), value(&setting.first), value(&setting.second))
}

fn cut(value: &str) -> String {
    let value = harmless(value).replace('\n', " ");
    match value.chars().count() > VALUE_MAX {
        true => value.chars().take(VALUE_MAX - 3).collect::<String>() + "...",
        false => value,
    }
}
