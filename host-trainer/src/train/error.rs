//! What configuring and training can refuse.

/// Why a run does not start, or stops. Messages name what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A configuration is no TOML.
    #[error("{origin} is not valid TOML: {reason}")]
    Toml {
        /// File name, or what else was read.
        origin: String,
        /// What the parser says.
        reason: String,
    },
    /// A key that does not exist.
    #[error("unknown key {found:?} in {origin}: expected {}", suggestion(.nearest.as_deref(), .known))]
    UnknownKey {
        /// File name or command line.
        origin: String,
        /// The key.
        found: String,
        /// The key that is meant, if one is near.
        nearest: Option<String>,
        /// All keys.
        known: String,
    },
    /// A key that is given twice under two names.
    #[error("{origin} sets {key} twice: expected either {key} or {alias}")]
    DuplicateKey {
        /// File name.
        origin: String,
        /// The key.
        key: &'static str,
        /// Its other name.
        alias: &'static str,
    },
    /// A key that must be there is not.
    #[error("{origin} does not set {key}: expected {expected}")]
    MissingKey {
        /// File name.
        origin: String,
        /// The key.
        key: &'static str,
        /// What its value would be.
        expected: &'static str,
    },
    /// A value of the wrong type or outside its range.
    #[error("{key}: expected {expected}, found {found}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A pattern fits no site of the base.
    #[error("{key} binds to nothing: expected a site of the base, found {pattern:?} (sites: {known})")]
    NoSite {
        /// The key with the pattern.
        key: &'static str,
        /// The pattern or patterns.
        pattern: String,
        /// The sites there are.
        known: String,
    },
    /// A named site has no influence on the task.
    #[error(
        "site {site} cannot be trained: expected a site that the task's output depends on, found one behind the features that \
         the task head reads (leave it out with exclude_modules)"
    )]
    SiteNotRead {
        /// The site.
        site: String,
    },
    /// A rank that cannot be written.
    #[error("rank of {site}: expected 1 to {max}, found {found}")]
    Rank {
        /// The site.
        site: String,
        /// Highest rank.
        max: u32,
        /// The rank.
        found: usize,
    },
    /// The base cannot be trained on as it is.
    #[error("the base does not fit the task: expected {expected}, found {found}")]
    Base {
        /// What the task needs.
        expected: String,
        /// What the base is.
        found: String,
    },
    /// The data cannot be trained on.
    #[error("the data set does not fit: expected {expected}, found {found}")]
    Data {
        /// What the task needs.
        expected: String,
        /// What the data set has.
        found: String,
    },
    /// A trained tensor that the loss does not depend on.
    #[error(
        "{tensor} never received a gradient in {steps} steps: expected a non-zero one (is its site cut off from the loss?)"
    )]
    NoGradient {
        /// The tensor, or several.
        tensor: String,
        /// Steps that were watched.
        steps: u64,
    },
    /// The loss is no number any more.
    #[error(
        "the training has diverged: expected a finite loss at step {step}, found {loss} (lower learning_rate?)"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
    },
    /// The run was asked to stop, and did after the step under way.
    #[error("stopped after step {step} of {steps}")]
    Interrupted {
        /// Steps taken.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// A device that this program or machine does not have.
    #[error("device: expected one that this build and machine have, found {found:?}: {reason}")]
    Device {
        /// What was asked for.
        found: String,
        /// Why it cannot be had.
        reason: String,
    },
}

fn suggestion(nearest: Option<&str>, known: &str) -> String {
    nearest.map_or_else(|| format!("one of {known}"), |nearest| format!("{nearest} (or one of {known})"))
}
