//! Columns of text, as wide as they must be.

/// Lines of cells; columns are `gap` spaces apart, and the last one is not filled up.
pub fn table<const N: usize>(rows: &[[&str; N]], gap: usize) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(|column| width(column) + gap);
    let line = |row: &[&str; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["A", "LONG", "C"], ["äöü", "", "x"], ["b", "", ""]];
        assert_eq!(table(&rows, 2), "A    LONG  C\näöü        x\nb\n");
    }
}
