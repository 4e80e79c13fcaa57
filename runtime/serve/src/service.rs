use pipeline::{ModelInfo, Pipeline, Task};

/// What a function answers with, once it is loaded.
pub trait Service: Clone + Send + Sync + 'static {
    /// What it calls itself.
    fn info(&self) -> &ModelInfo;

    /// What its model is for; `None` if it has none.
    fn purpose(&self) -> Option<Task<'_>>;
}

impl<P: Pipeline> Service for P {
    fn info(&self) -> &ModelInfo {
        self.model()
    }

    fn purpose(&self) -> Option<Task<'_>> {
        Some(self.task())
    }
}
