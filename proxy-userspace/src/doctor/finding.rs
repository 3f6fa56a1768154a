//! What the doctor says.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is lost by it.
    Note,
    /// Some traffic may suffer, or it could not be looked.
    Warning,
    /// Services are not served as they should be.
    Problem,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "WARNING",
            Self::Problem => "PROBLEM",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which check it belongs to: one word.
    pub check: &'static str,
    /// Where: files, interfaces, hooks or objects; never empty.
    pub places: Vec<String>,
    /// What was found.
    pub found: String,
    /// What to do, where there is something to be done.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding of one check without a remedy.
    pub fn new(
        severity: Severity,
        check: &'static str,
        place: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            check,
            places: vec![place.into()],
            found: found.into(),
            remedy: None,
        }
    }

    /// Everything is as it should be.
    pub fn ok(check: &'static str, place: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Severity::Ok, check, place, found)
    }

    /// It could not be looked, and why.
    pub fn unknown(
        check: &'static str,
        place: impl Into<String>,
        why: &dyn std::error::Error,
    ) -> Self {
        let found = format!("could not be looked at: {}", crate::error_chain(why));
        Self::new(Severity::Warning, check, place, found)
    }

    /// In all these places instead.
    pub fn at(mut self, places: Vec<String>) -> Self {
        self.places = places;
        self
    }

    /// With what to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}
