//! What is printed.

use std::fmt;

use serde::Serialize;

/// What a ratio is to be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// At least so much of the baseline.
    AtLeast(f64),
    /// At most so much of it.
    AtMost(f64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(ratio) => write!(f, ">= {ratio}"),
            Self::AtMost(ratio) => write!(f, "<= {ratio}"),
        }
    }
}

/// One figure beside its baseline.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Of figure and baseline.
    pub unit: &'static str,
    /// The same by other means in the same run; absent for what is only reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// Figure through baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// What the ratio is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<52} {:>12} {:<10}",
            self.name,
            number(self.value),
            self.unit
        )?;
        let (Some(baseline), Some(ratio)) = (self.baseline, self.ratio) else {
            return Ok(());
        };
        write!(f, " baseline {:>10} ratio {ratio:>6.2}", number(baseline))?;
        match (&self.target, self.met) {
            (Some(target), Some(true)) => write!(f, " {target} met"),
            (Some(target), _) => write!(f, " {target} MISSED"),
            (None, _) => Ok(()),
        }
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// All rows, in the order in which they were measured.
pub struct Table<'t> {
    /// The rows.
    pub rows: Vec<Row>,
    slack: f64,
    tell: Box<dyn FnMut(&Row) + 't>,
}

impl<'t> Table<'t> {
    /// Empty; each row is told when it comes. A slack of 2 makes half of a least enough, and twice a most.
    pub fn new(slack: f64, tell: impl FnMut(&Row) + 't) -> Self {
        Self {
            rows: Vec::new(),
            slack,
            tell: Box::new(tell),
        }
    }

    /// A figure that is to stand in a ratio to its baseline.
    pub fn aim(
        &mut self,
        name: &str,
        value: f64,
        unit: &'static str,
        baseline: f64,
        target: Target,
    ) {
        let ratio = value / baseline;
        let target = match target {
            Target::AtLeast(least) => Target::AtLeast(least / self.slack),
            Target::AtMost(most) => Target::AtMost(most * self.slack),
        };
        let met = match target {
            Target::AtLeast(least) => ratio >= least,
            Target::AtMost(most) => ratio <= most,
        };
        self.add(Row {
            name: name.to_owned(),
            value,
            unit,
            baseline: Some(baseline),
            ratio: Some(ratio),
            target: Some(target.to_string()),
            met: Some(met),
        });
    }

    /// A figure beside a baseline, without an aim.
    pub fn compare(&mut self, name: &str, value: f64, unit: &'static str, baseline: f64) {
        self.add(Row {
            name: name.to_owned(),
            value,
            unit,
            baseline: Some(baseline),
            ratio: Some(value / baseline),
            target: None,
            met: None,
        });
    }

    /// A figure that was measured before.
    pub fn value(&self, name: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.name == name);
        row.map(|row| row.value)
    }

    /// A figure that is only reported.
    pub fn report(&mut self, name: &str, value: f64, unit: &'static str) {
        self.add(Row {
            name: name.to_owned(),
            value,
            unit,
            baseline: None,
            ratio: None,
            target: None,
            met: None,
        });
    }

    fn add(&mut self, row: Row) {
        (self.tell)(&row);
        self.rows.push(row);
    }
}
