use pipeline::{Classifications, Classifier, ClassifyOptions};

use super::{Endpoint, Texts};
use crate::error::ApiError;

impl Endpoint<Classifier> {
    /// The most probable labels of each text.
    ///
    /// # Errors
    ///
    /// Of a text, or of `top_k`, that is over a limit; of the model, and of its queue.
    pub async fn predict(
        &self,
        mut texts: Texts,
        options: ClassifyOptions,
    ) -> Result<Classifications, ApiError> {
        let checked = texts.check(&self.config)?;
        if options.top_k == Some(0) {
            return Err(ApiError::field("out_of_range", "top_k", "0 is below 1").with_limit(1));
        }
        let classified = self.pipeline().await?.classify(checked, options).await;
        let classified =
            classified.map_err(|error| ApiError::of_pipeline(&error, |index| texts.name(index)))?;
        if let [row] = &*classified.rows
            && let Some(best) = row.first()
        {
            telemetry::note(|facts| facts.label = Some(best.label.clone()));
        }
        Ok(classified)
    }
}
