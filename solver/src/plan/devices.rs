//! The value of RUN --device: a name of the Container Device Interface, and whether the step needs the device.

use parser::suggest;

use crate::op::Device;

/// Reads `NAME`, `name=NAME`, `required` and `required=BOOL`, separated by commas.
///
/// # Errors
/// What is wrong, in BuildKit's words.
pub(super) fn parse(value: &str) -> Result<Device, String> {
    let mut name = None;
    let mut required = false;
    for field in value.split(',') {
        let (key, setting) = match field.split_once('=') {
            Some((key, setting)) => (key.to_ascii_lowercase(), Some(setting)),
            None => (field.to_ascii_lowercase(), None),
        };
        match (key.as_str(), setting) {
            ("required", setting) => required = flag(setting)?,
            ("name", Some(setting)) if name.is_none() => name = Some(setting.to_owned()),
            ("name", Some(_)) => {
                return Err(format!("device name already set to {}", name.unwrap_or_default()));
            }
            _ if name.is_none() => name = Some(field.to_owned()),
            (_, None) => return Err(format!("invalid field '{field}' must be a key=value pair")),
            (key, Some(_)) => {
                let unexpected = format!("unexpected key '{key}' in '{field}'");
                return Err(match suggest::nearest(key, ["name", "required"]) {
                    Some(near) => format!("{unexpected} (did you mean {near}?)"),
                    None => unexpected,
                });
            }
        }
    }
    let name = name.filter(|name| !name.is_empty()).ok_or("a device needs a name")?;
    Ok(Device { name, required })
}

fn flag(setting: Option<&str>) -> Result<bool, String> {
    match setting {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("invalid value for required: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_a_name_and_may_be_required() {
        for (value, name, required) in [
            ("vendor.com/gpu", "vendor.com/gpu", false),
            ("vendor.com/gpu=0", "vendor.com/gpu=0", false),
            ("vendor.com/gpu=0,required", "vendor.com/gpu=0", true),
            ("required=true,name=vendor.com/gpu=all", "vendor.com/gpu=all", true),
            ("name=v/c,required=false", "v/c", false),
        ] {
            assert_eq!(parse(value), Ok(Device { name: name.to_owned(), required }), "{value}");
        }
        for (value, want) in [
            ("required", "a device needs a name"),
            ("v/c,name=w/c", "device name already set to v/c"),
            ("v/c,other", "invalid field 'other' must be a key=value pair"),
            ("v/c,requird=1", "unexpected key 'requird' in 'requird=1' (did you mean required?)"),
            ("v/c,required=perhaps", "invalid value for required: perhaps"),
        ] {
            assert_eq!(parse(value), Err(want.to_owned()), "{value}");
        }
    }
}
