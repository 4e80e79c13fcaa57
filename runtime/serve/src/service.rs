use pipeline::{ModelInfo, Pipeline, Task};

/// What a function answers with, once it is loaded.
pub trait Service: Clone + Send + Sync + 'static {
    /// What it calls itself.
    fn info(&self) -> &ModelInfo;

    /// Whether it will never answer again, as when a GPU has failed.
    fn is_lost(&self) -> bool;

    /// What its model is for; `None` if it has none.
    fn purpose(&self) -> Option<Task<'_>>;
}

impl<P: Pipeline> Service for P {
    fn info(&self) -> &ModelInfo {
        self.model()
    }

    fn is_lost(&self) -> bool {
        Pipeline::is_lost(self)
    }

    fn purpose(&self) -> Option<Task<'_>> {
        Some(self.task())
    }
}
