//! What programs read: the same values in every form.

use serde::Serialize;

use super::args::Output;

/// A form for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl Form {
    /// One value.
    pub fn text<T: Serialize + ?Sized>(self, value: &T) -> anyhow::Result<String> {
        Ok(match self {
            Self::Json => serde_json::to_string_pretty(value)?,
            Self::Yaml => serde_saphyr::to_string(&value)?.trim_end().to_owned(),
        })
    }

    /// Values that others follow: a JSON object a line, a YAML document each.
    pub fn parts<T: Serialize>(self, values: &[T]) -> anyhow::Result<String> {
        let parts = values.iter().map(|value| match self {
            Self::Json => Ok(serde_json::to_string(value)?),
            Self::Yaml => Ok(format!("---\n{}", self.text(value)?)),
        });
        Ok(parts.collect::<anyhow::Result<Vec<_>>>()?.join("\n"))
    }
}

impl Output {
    /// `None`: it is for people.
    pub fn form(self) -> Option<Form> {
        match self {
            Self::Table | Self::Wide => None,
            Self::Json => Some(Form::Json),
            Self::Yaml => Some(Form::Yaml),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Form;

    #[test]
    fn both_forms_say_the_same() {
        // Texts that YAML would read as something else.
        let value =
            json!({"name": "web", "port": 80, "texts": ["no", "1", "a: b", ""], "none": null});
        for form in [Form::Json, Form::Yaml] {
            let text = form.text(&value).unwrap();
            let read: Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(read, value, "{text}");
        }
    }

    #[test]
    fn parts_stand_by_themselves() {
        let parts = [json!({"a": 1}), json!({"a": 2})];
        assert_eq!(Form::Json.parts(&parts).unwrap(), "{\"a\":1}\n{\"a\":2}");
        let yaml = Form::Yaml.parts(&parts).unwrap();
        assert_eq!(yaml.matches("---\n").count(), 2, "{yaml}");
        assert_eq!(Form::Json.parts::<i32>(&[]).unwrap(), "");
    }
}
