//! What two configs or manifests say differently, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// One field that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Where it stands: `created`, `config.Env.PATH`, `config.Labels.version`.
    pub name: String,
    /// What the first has, as JSON; nothing where it has no such field.
    pub first: Option<String>,
    /// What the second has.
    pub second: Option<String>,
}

/// The fields that differ, in the order of their names. What layers and steps are is not told here: `skipped` are the names of
/// fields of the outermost object that others compare.
pub fn settings(first: &Value, second: &Value, skipped: &[&str]) -> Vec<Setting> {
    let (first, second) = (flat(first, skipped), flat(second, skipped));
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let differs = |name: &&String| first.get(*name) != second.get(*name);
    let setting = |name: &String| Setting {
        name: name.clone(),
        first: first.get(name).cloned(),
        second: second.get(name).cloned(),
    };
    names.into_iter().filter(differs).map(setting).collect()
}

fn flat(value: &Value, skipped: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Value::Object(fields) = value else { return found };
    for (name, value) in fields.iter().filter(|(name, _)| !skipped.contains(&name.as_str())) {
        flatten(name.clone(), value, &mut found);
    }
    found
}

/// Objects are taken apart, and lists of `NAME=VALUE`; other lists are one value, since their order means something. An empty
/// object or list, and null, are nothing.
fn flatten(name: String, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            fields.iter().for_each(|(inner, value)| flatten(format!("{name}.{inner}"), value, found));
        }
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) => match variables(items) {
            Some(variables) => found.extend(
                variables.into_iter().map(|(inner, value)| (format!("{name}.{inner}"), format!("{value:?}"))),
            ),
            None => drop(found.insert(name, value.to_string())),
        },
        value => drop(found.insert(name, value.to_string())),
    }
}

/// `[A=1, B=2]`, if every name stands there once.
fn variables(items: &[Value]) -> Option<BTreeMap<&str, &str>> {
    let pairs = items.iter().map(|item| item.as_str()?.split_once('='));
    let map: BTreeMap<&str, &str> = pairs.collect::<Option<_>>()?;
    (map.len() == items.len()).then_some(map)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_told_by_their_names() {
        let first = json!({
            "created": "2000", "os": "linux", "rootfs": 1,
            "config": { "Env": ["A=1", "B=2"], "Cmd": ["a", "b"], "Labels": { "x": "1" }, "Volumes": {} },
        });
        let second = json!({
            "created": "2026", "os": "linux", "rootfs": 2,
            "config": { "Env": ["B=2", "A=3"], "Cmd": ["b", "a"], "User": "me" },
        });
        let told: Vec<String> = settings(&first, &second, &["rootfs"])
            .into_iter()
            .map(|setting| {
                let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
                format!("{} {} {}", setting.name, text(setting.first), text(setting.second))
            })
            .collect();
        assert_eq!(
            told,
            [
                r#"config.Cmd ["a","b"] ["b","a"]"#,
                r#"config.Env.A "1" "3""#,
                r#"config.Labels.x "1" -"#,
                r#"config.User - "me""#,
                r#"created "2000" "2026""#,
            ]
        );
    }
}
