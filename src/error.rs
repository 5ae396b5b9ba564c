//! What can go wrong, in words a person can act on.

/// The error of every fallible call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is not what the call takes.
    #[error("{argument}: expected {expected}, got {actual}")]
    Argument {
        /// The argument's name.
        argument: &'static str,
        /// What the call takes.
        expected: String,
        /// What the call was given.
        actual: String,
    },
    /// The CUDA driver refused something.
    #[cfg(feature = "cuda")]
    #[error("CUDA: {action}: {reason}")]
    Cuda {
        /// What was being done.
        action: String,
        /// What the driver said.
        reason: String,
    },
    /// A process group could not do something together: a process is lost or too late, or the calls differ.
    #[cfg(feature = "distributed")]
    #[error("process {rank} of {size}: {reason}")]
    Process {
        /// The process that says it: this one, or that of rank 0 where its error is the error of all.
        rank: usize,
        /// How many processes the group has.
        size: usize,
        /// What went wrong.
        reason: String,
    },
    /// libtorch reported an error.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

impl Error {
    pub(crate) fn argument(argument: &'static str, expected: impl Into<String>, actual: impl Into<String>) -> Self {
        Self::Argument { argument, expected: expected.into(), actual: actual.into() }
    }
}
