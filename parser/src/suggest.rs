//! "Did you mean": the known name nearest to a mistyped one.

/// Changes of single letters up to which two names are taken for the same.
const MAX_DISTANCE: usize = 2;

/// Letters from which on the start of a name is taken for the name.
const SHORTEST_START: usize = 3;

/// The nearest of `known`, if one is near; case does not count.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let candidates = known.into_iter().map(|known| (distance(&name, &known.to_ascii_lowercase()), known));
    let (distance, nearest) = candidates.min()?;
    // A name of which half would have to change is not meant, unless it is only cut short.
    let is_cut_short = name.len() >= SHORTEST_START && nearest.to_ascii_lowercase().starts_with(&name);
    let is_near = || is_cut_short || 2 * distance < nearest.len().min(name.len());
    (distance <= MAX_DISTANCE && is_near()).then_some(nearest)
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Long names are never near, and must not cost time.
    if a.len().abs_diff(b.len()) > MAX_DISTANCE {
        return usize::MAX;
    }
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
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
            ("RNU", Some("RUN")),
            ("E", None),
            ("ENDS", None),
            ("FROBNICATE", None),
            ("x", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
