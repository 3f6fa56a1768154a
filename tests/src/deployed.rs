//! The dashboard and the alerts of `deploy/`: what they ask Prometheus for, and where panels are.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../../deploy/grafana/shunt.json");
/// The rule file.
pub const RULES: &str = include_str!("../../deploy/prometheus/shunt.rules.yaml");

/// What stands at a place of the dashboard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// How it shows values.
    pub kind: Kind,
    /// Grafana's name of the unit.
    pub unit: String,
    /// Columns from the left, of 24, and units of height from the top.
    pub at: (u32, u32),
    /// Columns, and units of height.
    pub size: (u32, u32),
    /// What it asks for.
    pub targets: Vec<Target>,
}

/// How a panel shows values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// None: a heading.
    Row,
    /// The last one, as a number.
    Stat,
    /// As lines over time.
    Lines,
}

/// What a panel asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// In Prometheus' language, with Grafana's variables.
    pub expression: String,
    /// Form of the legend.
    pub legend: String,
}

/// The dashboard's panels.
///
/// # Errors
/// Names the panel that has no place, or a data source other than the chosen one.
pub fn panels() -> Result<Vec<Panel>> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    list(&dashboard["panels"]).iter().map(panel).collect()
}

fn panel(json: &Value) -> Result<Panel> {
    let title = text(&json["title"]);
    let number = |name: &str| {
        let value = json["gridPos"][name].as_u64();
        let value = value.and_then(|value| u32::try_from(value).ok());
        value.with_context(|| format!("{title}: no gridPos.{name}"))
    };
    let targets = list(&json["targets"]).iter().map(|target| {
        ensure!(
            target["datasource"]["uid"] == "${datasource}",
            "{title}: a data source by name"
        );
        Ok(Target {
            expression: text(&target["expr"]),
            legend: text(&target["legendFormat"]),
        })
    });
    Ok(Panel {
        kind: match json["type"].as_str() {
            Some("row") => Kind::Row,
            Some("stat") => Kind::Stat,
            _ => Kind::Lines,
        },
        unit: text(&json["fieldConfig"]["defaults"]["unit"]),
        at: (number("x")?, number("y")?),
        size: (number("w")?, number("h")?),
        targets: targets.collect::<Result<_>>()?,
        title,
    })
}

/// The dashboard's choices out of what Prometheus knows: name, metric and label.
///
/// # Errors
/// Names the choice that is no `label_values(METRIC, LABEL)`.
pub fn choices() -> Result<Vec<[String; 3]>> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let all = list(&dashboard["templating"]["list"]).iter();
    let queries = all.filter(|variable| variable["type"] == "query");
    let choices = queries.map(|variable| {
        let (name, query) = (text(&variable["name"]), text(&variable["query"]["query"]));
        let inside = query.strip_prefix("label_values(");
        let inside = inside.and_then(|inside| inside.strip_suffix(')'));
        let parts = inside.and_then(|inside| inside.rsplit_once(", "));
        let (metric, label) = parts.with_context(|| format!("{name}: {query}"))?;
        Ok([name, metric.to_owned(), label.to_owned()])
    });
    choices.collect()
}

/// The alerts: name and expression.
///
/// # Errors
/// Names the alert that does not say what is wrong, or how much that matters.
pub fn alerts() -> Result<Vec<(String, String)>> {
    let file: Value = serde_saphyr::from_str(RULES)?;
    let groups = list(&file["groups"]).iter();
    let rules = groups.flat_map(|group| list(&group["rules"]));
    let alerts = rules.map(|rule| {
        let name = rule["alert"].as_str().context("an alert without a name")?;
        let is_told = rule["annotations"]["summary"].is_string()
            && rule["annotations"]["description"].is_string()
            && rule["labels"]["severity"].is_string();
        ensure!(is_told, "{name} does not say what is wrong");
        let expression = rule["expr"].as_str();
        let expression = expression.with_context(|| format!("{name} has no expression"))?;
        Ok((name.to_owned(), expression.to_owned()))
    });
    alerts.collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
