//! Which step of one image is which of another: by the text of their instructions, in their order.
//!
//! Two builds of one Dockerfile pair line by line. Where a line was added, or its text changed, the lines around it still
//! find each other (longest common subsequence); between those, lines pair that begin with the same word, so that `ENV V=1`
//! is told as a change to `ENV V=2`.

/// A step of one image and its counterpart, by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// Both have it.
    Both(usize, usize),
    /// Only the first has it.
    First(usize),
    /// Only the second has it.
    Second(usize),
}

/// Rows times columns of the table that is made at most.
const TABLE_MAX: usize = 4 << 20;

/// Pairs steps by what they are called; each stands in the result once, in the order of both.
pub fn pair(first: &[&str], second: &[&str]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let (mut row, mut column) = (0, 0);
    for found in common(first, second).into_iter().chain([(first.len(), second.len())]) {
        pairs.extend(gap(&first[row..found.0], &second[column..found.1], (row, column)));
        if found.0 < first.len() {
            pairs.push(Pair::Both(found.0, found.1));
        }
        (row, column) = (found.0 + 1, found.1 + 1);
    }
    pairs
}

/// Steps between two that have found each other, by their first words.
fn gap(first: &[&str], second: &[&str], (row, column): (usize, usize)) -> Vec<Pair> {
    fn words<'a>(texts: &[&'a str]) -> Vec<&'a str> {
        texts.iter().map(|text| text.split_whitespace().next().unwrap_or_default()).collect()
    }
    let mut pairs = Vec::new();
    let (mut one, mut other) = (0, 0);
    let found = common(&words(first), &words(second));
    for (next, other_next) in found.into_iter().chain([(first.len(), second.len())]) {
        pairs.extend((one..next).map(|at| Pair::First(row + at)));
        pairs.extend((other..other_next).map(|at| Pair::Second(column + at)));
        if next < first.len() {
            pairs.push(Pair::Both(row + next, column + other_next));
        }
        (one, other) = (next + 1, other_next + 1);
    }
    pairs
}

/// The places of a longest common subsequence; what is too long for it pairs by places while the texts are the same.
fn common(first: &[&str], second: &[&str]) -> Vec<(usize, usize)> {
    let head = first.iter().zip(second).take_while(|(one, other)| one == other).count();
    let (first, second) = (&first[head..], &second[head..]);
    let mut places: Vec<_> = (0..head).map(|at| (at, at)).collect();
    if first.len().saturating_mul(second.len()) > TABLE_MAX {
        let same = (0..first.len().min(second.len())).filter(|at| first[*at] == second[*at]);
        places.extend(same.map(|at| (head + at, head + at)));
        return places;
    }
    // most[i][j]: the most pairs of first[i..] and second[j..].
    let mut most = vec![vec![0_u32; second.len() + 1]; first.len() + 1];
    for row in (0..first.len()).rev() {
        for column in (0..second.len()).rev() {
            most[row][column] = match first[row] == second[column] {
                true => most[row + 1][column + 1] + 1,
                false => most[row + 1][column].max(most[row][column + 1]),
            };
        }
    }
    let (mut row, mut column) = (0, 0);
    while row < first.len() && column < second.len() {
        if first[row] == second[column] {
            places.push((head + row, head + column));
            (row, column) = (row + 1, column + 1);
        } else if most[row + 1][column] >= most[row][column + 1] {
            row += 1;
        } else {
            column += 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a,b 1=b 2,-c,+d`: both have a, b has changed, then c is the first's and d the second's.
    fn paired(first: &'static str, second: &'static str) -> String {
        let steps = |text: &'static str| text.split_terminator(',').collect::<Vec<_>>();
        let (first, second) = (steps(first), steps(second));
        let name = |pair: &Pair| match *pair {
            Pair::Both(one, other) if first[one] == second[other] => first[one].to_owned(),
            Pair::Both(one, other) => format!("{}={}", first[one], second[other]),
            Pair::First(one) => format!("-{}", first[one]),
            Pair::Second(other) => format!("+{}", second[other]),
        };
        pair(&first, &second).iter().map(name).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn steps_find_each_other_around_what_has_changed() {
        for (first, second, expected) in [
            ("a,b,c", "a,b,c", "a,b,c"),
            ("a,b,c", "a,x,c", "a,-b,+x,c"),
            ("a,c", "a,b,c", "a,+b,c"),
            ("a,b,c", "c", "-a,-b,c"),
            ("", "a", "+a"),
            ("a,x,b,y,c", "a,y,b,x,c", "a,-x,-b,y,+b,+x,c"),
            ("a,a,a", "a,a", "a,a,-a"),
            ("a,ARG 1,RUN 1,z", "a,ARG 2,ENV,RUN 2,z", "a,ARG 1=ARG 2,+ENV,RUN 1=RUN 2,z"),
        ] {
            assert_eq!(paired(first, second), expected, "{first} | {second}");
        }
    }

    #[test]
    fn too_many_steps_pair_by_their_places() {
        let steps = |prefix: &str| (0..3000).map(|at| format!("{prefix}{at} x")).collect::<Vec<_>>();
        let (first, second) = (steps("one"), steps("other"));
        let texts = |steps: &'static [String]| steps.iter().map(String::as_str).collect::<Vec<_>>();
        let pairs = pair(&texts(first.leak()), &texts(second.leak()));
        assert_eq!((pairs[0], pairs[3000], pairs.len()), (Pair::First(0), Pair::Second(0), 6000));
    }
}
