//! The comma-separated values that Docker's flags take: one record of RFC 4180, read strictly as Go does.

/// Why a value is not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// A quote inside a field that does not begin with one.
    #[error("a quote stands inside a field: quote the whole field, as in '\"name=a,b\"'")]
    BareQuote,
    /// A quoted field that does not end, or that goes on after its end.
    #[error("a quoted field must end with a quote, followed by a comma or nothing")]
    UnclosedQuote,
}

/// The fields of a record.
///
/// # Errors
/// [`CsvError`] where quotes are not where they belong.
pub fn fields(text: &str) -> Result<Vec<String>, CsvError> {
    let mut fields = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (field, after) = if text.starts_with('"') { quoted(text)? } else { bare(text)? };
        fields.push(field);
        rest = after;
    }
    Ok(fields)
}

fn bare(text: &str) -> Result<(String, Option<&str>), CsvError> {
    let (field, after) = match text.split_once(',') {
        Some((field, after)) => (field, Some(after)),
        None => (text, None),
    };
    if field.contains('"') {
        return Err(CsvError::BareQuote);
    }
    Ok((field.to_owned(), after))
}

/// A field that begins with a quote; two quotes stand for one.
fn quoted(text: &str) -> Result<(String, Option<&str>), CsvError> {
    let mut field = String::new();
    let mut rest = &text[1..];
    loop {
        let (part, after) = rest.split_once('"').ok_or(CsvError::UnclosedQuote)?;
        field.push_str(part);
        if let Some(escaped) = after.strip_prefix('"') {
            field.push('"');
            rest = escaped;
        } else if after.is_empty() {
            return Ok((field, None));
        } else {
            let after = after.strip_prefix(',').ok_or(CsvError::UnclosedQuote)?;
            return Ok((field, Some(after)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_gos() {
        for (text, want) in [
            ("type=oci", &["type=oci"][..]),
            ("a=1,b=2", &["a=1", "b=2"]),
            ("a=1,\"name=x,y\",b", &["a=1", "name=x,y", "b"]),
            ("\"say \"\"hi\"\"\"", &["say \"hi\""]),
            ("a,", &["a", ""]),
            ("", &[""]),
        ] {
            assert_eq!(
                fields(text).as_deref(),
                Ok(&want.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..])
            );
        }
        assert_eq!(fields("name=\"x,y\""), Err(CsvError::BareQuote));
        assert_eq!(fields("\"x,y"), Err(CsvError::UnclosedQuote));
        assert_eq!(fields("\"x\"y"), Err(CsvError::UnclosedQuote));
    }
}
