//! What an expression of PromQL asks for: metrics, with the labels that it needs of them. No
//! parser of the whole language: names, matchers and lists of labels are told apart, no more.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// Names of the language that stand where a metric could, and have no parenthesis of arguments.
const KEYWORDS: [&str; 8] = [
    "and", "or", "unless", "bool", "offset", "inf", "nan", "atan2",
];
/// What a list of labels follows.
const LABEL_LISTS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];
/// Metrics that Prometheus makes by itself.
const OF_PROMETHEUS: [&str; 1] = ["up"];
/// Labels that Prometheus adds to what it scrapes.
const OF_TARGETS: [&str; 2] = ["instance", "job"];

/// A label, and the values that it may have; none where they are a variable's.
pub type Matcher = (String, Vec<String>);

/// A metric that an expression names, with its matchers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    /// The metric.
    pub name: String,
    /// What its labels must be.
    pub labels: Vec<Matcher>,
}

/// What an expression names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Named {
    /// Metrics.
    pub selectors: Vec<Selector>,
    /// Labels that it groups or matches by.
    pub grouped: BTreeSet<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Name(String),
    Text(String),
    Sign(char),
}

/// Reads an expression.
pub fn named(expression: &str) -> Result<Named> {
    let tokens = tokens(expression).with_context(|| expression.to_owned())?;
    let mut named = Named::default();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            Token::Name(name) if LABEL_LISTS.contains(&name.as_str()) => {
                let (labels, end) = label_list(&tokens, at)?;
                named.grouped.extend(labels);
                at = end;
            }
            Token::Name(name) => {
                let is_function = matches!(tokens.get(at), Some(Token::Sign('(')));
                let is_aggregation = matches!(tokens.get(at), Some(Token::Name(next))
                    if LABEL_LISTS[..2].contains(&next.as_str()));
                if is_function || is_aggregation || KEYWORDS.contains(&name.as_str()) {
                    continue;
                }
                let (labels, end) = matchers(&tokens, at)?;
                let name = name.clone();
                named.selectors.push(Selector { name, labels });
                at = end;
            }
            Token::Sign('{') => bail!("{expression}: a selector without a metric"),
            Token::Text(_) | Token::Sign(_) => {}
        }
    }
    ensure!(
        !named.selectors.is_empty(),
        "{expression}: it names no metric"
    );
    Ok(named)
}

/// `(a, b)` at `at`, if it is there; and where it ends.
fn label_list(tokens: &[Token], at: usize) -> Result<(Vec<String>, usize)> {
    if tokens.get(at) != Some(&Token::Sign('(')) {
        return Ok((Vec::new(), at));
    }
    let rest = tokens[at..].iter();
    let end = rest.take_while(|token| **token != Token::Sign(')')).count();
    let inside = &tokens[at + 1..at + end];
    let names = inside.iter().filter_map(|token| match token {
        Token::Name(name) => Some(name.clone()),
        Token::Text(_) | Token::Sign(_) => None,
    });
    ensure!(at + end < tokens.len(), "a list of labels without its end");
    Ok((names.collect(), at + end + 1))
}

/// `{a="x", b=~"y|z"}` at `at`, if it is there; and where it ends.
fn matchers(tokens: &[Token], mut at: usize) -> Result<(Vec<Matcher>, usize)> {
    let mut all = Vec::new();
    if tokens.get(at) != Some(&Token::Sign('{')) {
        return Ok((all, at));
    }
    at += 1;
    loop {
        match tokens.get(at) {
            Some(Token::Sign('}')) => return Ok((all, at + 1)),
            Some(Token::Sign(',')) => at += 1,
            Some(Token::Name(label)) => {
                let signs = tokens[at + 1..].iter();
                let signs: String = signs
                    .map_while(|token| match token {
                        Token::Sign(sign) => Some(*sign),
                        Token::Name(_) | Token::Text(_) => None,
                    })
                    .collect();
                let text = tokens.get(at + 1 + signs.len());
                let Some(Token::Text(text)) = text else {
                    bail!("{label}: a matcher without a value");
                };
                let values = match signs.as_str() {
                    _ if text.contains('$') => Vec::new(),
                    "=" => vec![text.clone()],
                    "=~" => text.split('|').map(str::to_owned).collect(),
                    // What is left out need not be there.
                    "!=" | "!~" => Vec::new(),
                    other => bail!("{label}: {other:?} is no matcher"),
                };
                all.push((label.clone(), values));
                at += 2 + signs.len();
            }
            other => bail!("{other:?} among matchers"),
        }
    }
}

fn tokens(expression: &str) -> Result<Vec<Token>> {
    let mut all = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        let length = match first {
            c if c.is_ascii_alphabetic() || c == '_' || c == ':' => {
                let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                all.push(Token::Name(rest[..length].to_owned()));
                length
            }
            // A number, maybe with a unit of time.
            c if c.is_ascii_digit() => rest
                .find(|c: char| !is_part(c) && c != '.')
                .unwrap_or(rest.len()),
            '"' | '\'' => {
                let end = rest[1..].find(first).context("a text without its end")?;
                all.push(Token::Text(rest[1..=end].to_owned()));
                end + 2
            }
            // A range; what is in it names nothing.
            '[' => rest.find(']').context("a range without its end")? + 1,
            sign => {
                if !sign.is_whitespace() {
                    all.push(Token::Sign(sign));
                }
                sign.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    Ok(all)
}

/// What a scrape has: the label sets of every series by its name.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<String, Vec<BTreeMap<String, String>>>);

impl Scrape {
    /// Reads Prometheus' text format.
    pub fn read(text: &str) -> Result<Self> {
        let mut all = Self::default();
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            value.parse::<f64>().with_context(|| line.to_owned())?;
            let Selector { name, labels } = named(series)?
                .selectors
                .pop()
                .with_context(|| line.to_owned())?;
            let labels = labels
                .into_iter()
                .map(|(label, values)| (label, values.concat()));
            all.0.entry(name).or_default().push(labels.collect());
        }
        Ok(all)
    }

    /// What an expression names that is not here.
    pub fn missing(&self, expression: &str) -> Result<Vec<String>> {
        let named = named(expression)?;
        let mut missing = Vec::new();
        let mut known = BTreeSet::from(OF_TARGETS);
        for selector in &named.selectors {
            if OF_PROMETHEUS.contains(&selector.name.as_str()) {
                continue;
            }
            let Some(series) = self.0.get(&selector.name) else {
                missing.push(selector.name.clone());
                continue;
            };
            known.extend(series.iter().flat_map(BTreeMap::keys).map(String::as_str));
            let labels = selector.labels.iter();
            for (label, values) in labels.filter(|(it, _)| !OF_TARGETS.contains(&it.as_str())) {
                let found: BTreeSet<&str> = series
                    .iter()
                    .filter_map(|labels| labels.get(label).map(String::as_str))
                    .collect();
                if found.is_empty() {
                    missing.push(format!("{}{{{label}}}", selector.name));
                }
                let absent = values.iter().filter(|it| !found.contains(it.as_str()));
                missing.extend(absent.map(|it| format!("{}{{{label}={it:?}}}", selector.name)));
            }
        }
        let unknown = named.grouped.iter();
        let unknown = unknown.filter(|label| !known.contains(label.as_str()));
        missing.extend(unknown.map(|label| format!("by ({label})")));
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPE: &str = "# HELP a_total So many\n# TYPE a_total counter\n\
        a_total{event=\"Drop\",ip=\"10.0.0.1:80\"} 3\na_total{event=\"Pass\",ip=\"\"} 1e3\n\
        h_bucket{le=\"0.5\"} 1\nplain 0.25\n";

    fn missing(expression: &str) -> Vec<String> {
        let scrape = Scrape::read(SCRAPE).unwrap();
        scrape.missing(expression).unwrap()
    }

    #[test]
    fn metrics_are_told_from_functions_keywords_and_labels() {
        let named = named(
            "histogram_quantile(0.99, sum by (le, zone) (rate(h_bucket{le=~\"$le\"}[5m]))) \
             / on (x) group_left topk(10, a_total{event!='Drop', ip=\"y\"} offset 1h) \
             > bool 1e3 and plain",
        )
        .unwrap();
        let names: Vec<&str> = named.selectors.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["h_bucket", "a_total", "plain"]);
        let grouped: Vec<&str> = named.grouped.iter().map(String::as_str).collect();
        assert_eq!(grouped, ["le", "x", "zone"]);
        let ip = ("ip".to_owned(), vec!["y".to_owned()]);
        assert_eq!(named.selectors[1].labels[1], ip);
    }

    #[test]
    fn what_a_scrape_has_is_not_missing() {
        for good in [
            "sum by (event, instance) (rate(a_total{event=~\"Drop|Pass\", job=\"x\"}[5m]))",
            "sum(a_total) by (event)",
            "plain * 2 > 0.5",
            "a_total{event=~\"$event\", ip!=\"nowhere\"}",
            "up == 0 or plain",
        ] {
            assert_eq!(missing(good), [""; 0], "{good}");
        }
    }

    #[test]
    fn what_is_made_up_is_missing() {
        for (bad, named) in [
            ("rate(b_total[5m])", "b_total"),
            ("plain / (1 + sum(made_up))", "made_up"),
            ("a_total{reason=\"x\"}", "a_total{reason}"),
            ("a_total{event=\"Lost\"}", "a_total{event=\"Lost\"}"),
            ("a_total{event=~\"Drop|Gone\"}", "a_total{event=\"Gone\"}"),
            ("sum by (zone) (plain)", "by (zone)"),
            ("sum(a_total) without (zone)", "by (zone)"),
            ("rate(h_buckets[5m])", "h_buckets"),
        ] {
            let missing = missing(bad);
            assert!(missing.iter().any(|it| it == named), "{bad}: {missing:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for bad in [
            "",
            "1 + 2",
            "a_total{x}",
            "a_total{x=\"y",
            "rate(a[5m",
            "{x=\"y\"}",
            "sum by (x",
        ] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
