//! "Did you mean": the known name nearest to a mistyped one.

/// Changes of single letters up to which two names are taken for the same.
const MAX_DISTANCE: usize = 2;

/// The nearest of `known`, if one is near; case does not count.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let candidates = known.into_iter().map(|known| (distance(&name, &known.to_ascii_lowercase()), known));
    let (distance, nearest) = candidates.min()?;
    // A name that would have to change in every letter is not meant.
    (distance <= MAX_DISTANCE && distance < nearest.len()).then_some(nearest)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    // Long names are never near, and must not cost time.
    if a.chars().count().abs_diff(b.len()) > MAX_DISTANCE {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["FROM", "RUN", "COPY", "ENTRYPOINT", "ENV", "ADD"];
        let cases = [
            ("FORM", Some("FROM")),
            ("frmo", Some("FROM")),
            ("RUM", Some("RUN")),
            ("COPPY", Some("COPY")),
            ("ENTRYPONT", Some("ENTRYPOINT")),
            ("FROBNICATE", None),
            ("x", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
