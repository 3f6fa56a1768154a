//! What is written for Prometheus without a registry: values that are read where they are.

use std::fmt::{Display, Write as _};

/// Text in Prometheus' format, a metric after the other.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// One metric: name, type and what it is. `samples`: labels in their written form, without
    /// braces, and the value.
    pub fn metric<L: Display, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        samples: impl IntoIterator<Item = (L, V)>,
    ) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels = labels.to_string();
            let _ = match labels.as_str() {
                "" => writeln!(self.0, "{name} {value}"),
                labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
            };
        }
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.metric((name, "gauge", help), [("", value)]);
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.0
    }
}
