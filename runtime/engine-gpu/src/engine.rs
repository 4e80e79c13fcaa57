//! A model on a device.

use std::{
    cmp,
    error::Error,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use encoder::{Description, Head, Layout, Source, Tokens};
use engine::{Batch, Engine, EngineError, Options, Output};
use telemetry::METRICS;
use weights::{Bundle, Packed, Tensor, Unpacked};

use crate::{
    cuda::Cuda,
    device::Device,
    failed,
    kernel::{Dtype, MAX_HIDDEN_SIZE},
    pass::{Pass, Plan, Readout, Size, Workspace},
    weights::Weights,
};

/// A model, ready to run on a device.
///
/// Weights and hidden states are in 16 bits: `f16`, or `bf16` from the first answer on that `f16` has no
/// room for.
pub struct GpuEngine<D: Device> {
    model: Arc<Model<D>>,
    /// Those that the passes are of.
    weights: Arc<Weights<D>>,
    workspace: Workspace,
    /// One for each of [`Size::ALL`].
    passes: Vec<Pass<D::Graph>>,
    /// Behind the passes, whose memory and kernels it has.
    device: D,
}

/// What all engines of a model share.
struct Model<D> {
    description: Description,
    layout: Layout,
    readout: Readout,
    source: Box<dyn Source>,
    /// The newest.
    weights: Mutex<Arc<Weights<D>>>,
}

impl<D> Model<D> {
    fn newest(&self) -> MutexGuard<'_, Arc<Weights<D>>> {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Device> fmt::Debug for GpuEngine<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GpuEngine").field("device", &self.device).finish_non_exhaustive()
    }
}

impl GpuEngine<Cuda> {
    /// Loads the packed model of `bundle` onto the first GPU that the process may see
    /// (`CUDA_VISIBLE_DEVICES`), as it arrives.
    ///
    /// # Errors
    ///
    /// A [`CudaError`](crate::CudaError) if there is no GPU, or none that there are kernels for; an
    /// [`EngineError`] as of [`GpuEngine::load_on`].
    pub fn load(bundle: &Bundle, options: &Options) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self::load_on(Cuda::open(0)?, bundle, options)?)
    }
}

impl<D: Device> GpuEngine<D> {
    /// Loads the packed model of `bundle` onto `device`, as it arrives.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] if the bundle is not packed, or there are no kernels for the model;
    /// [`EngineError::Backend`] if the device fails.
    pub fn load_on(device: D, bundle: &Bundle, options: &Options) -> Result<Self, EngineError> {
        let _stage = telemetry::stage("engine");
        let options = options.or_of(bundle.precision(), bundle.sentence().pooling.as_deref())?;
        let precision = options.precision.unwrap_or(engine::Precision::F32);
        let packed = bundle
            .packed(precision.as_str())
            .map_err(|error| unsupported(error.to_string()))?
            .ok_or_else(|| {
                unsupported("an export, and a GPU runs packed models: `sanderling pack`")
            })?;
        let Packed { description, tensors, weights, .. } = packed;
        Self::new(device, &description, tensors, Box::new(weights), &options)
    }

    /// Loads a packed model that no bundle holds onto `device`.
    ///
    /// # Errors
    ///
    /// As [`GpuEngine::load_on`].
    pub fn of_unpacked(
        device: D,
        model: &Unpacked<'_>,
        options: &Options,
    ) -> Result<Self, EngineError> {
        let source = Box::new(model.weights.to_vec());
        Self::new(device, model.description, model.tensors.clone(), source, options)
    }

    fn new(
        device: D,
        description: &str,
        tensors: Vec<Tensor>,
        source: Box<dyn Source>,
        options: &Options,
    ) -> Result<Self, EngineError> {
        let mut description: Description =
            serde_json::from_str(description).map_err(|error| unsupported(error.to_string()))?;
        description.tensors = tensors;
        if description.readout == Head::Graph {
            return Err(unsupported(
                "a head that is a graph; a GPU runs linear layers and pooling",
            ));
        }
        let widest = cmp::max(description.hidden_size, description.embedding_size);
        if widest > MAX_HIDDEN_SIZE {
            return Err(unsupported(format!(
                "hidden states of {widest} elements; there are kernels for up to {MAX_HIDDEN_SIZE}"
            )));
        }
        let layout = Layout::read(&description, (*source).as_ref())?;
        let readout = Readout {
            pooling: options.pooling.unwrap_or_default(),
            width: layout.head.last().map_or(description.hidden_size, |last| last.out_features),
        };
        METRICS.gpu_memory_bytes.with([]).set(device.memory_bytes() as f64);
        let of_weights = device.another().map_err(failed)?;
        let weights = Weights::load(of_weights, &description, &layout, &*source, Dtype::F16)?;
        tracing::info!(device = device.name(), "encoder on a GPU");
        let weights = Mutex::new(Arc::new(weights));
        let model = Model { description, layout, readout, source, weights };
        Self::of_model(device, Arc::new(model))
    }

    fn of_model(mut device: D, model: Arc<Model<D>>) -> Result<Self, EngineError> {
        let weights = model.newest().clone();
        let width = model.readout.width;
        let workspace = Workspace::allocate(&mut device, &weights, width).map_err(failed)?;
        let mut engine = Self { model, weights, workspace, passes: Vec::new(), device };
        engine.prepare()?;
        Ok(engine)
    }

    /// Prepares the passes over `weights`.
    fn prepare(&mut self) -> Result<(), EngineError> {
        let Self { model, weights, workspace, passes, device } = self;
        let Model { description, layout, readout, .. } = &**model;
        let plan = Plan { description, layout, weights, workspace, readout: *readout };
        let prepared = Size::ALL.into_iter().map(|size| Pass::prepare(device, &plan, size));
        *passes = prepared.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// One row a sequence, `[batch_size, width]`.
    fn rows(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        let Model { description, layout, readout, .. } = &*self.model;
        let mut rows = Vec::with_capacity(batch.batch_size() * readout.width);
        for part in parts(batch)? {
            let tokens = Tokens::read(description, layout, batch, part)?;
            let pass = self.passes.iter().find(|pass| pass.has_room_for(&tokens));
            let pass = pass.ok_or_else(|| failed("no pass has room for a part".into()))?;
            // A fault of a kernel comes with what is asked next, and stays.
            let part = pass.run(&mut self.device, &tokens, readout.width);
            rows.extend(part.map_err(|source| EngineError::Lost { engine: "gpu", source })?);
        }
        Ok(rows)
    }

    /// Goes over to bf16, which has room for what f16 has not, and takes all engines of the model along.
    fn widen(&mut self) -> Result<(), EngineError> {
        let Model { description, layout, source, .. } = &*self.model;
        let mut newest = self.model.newest();
        // Another engine may have been faster.
        if newest.dtype == Dtype::F16 {
            let device = self.device.another().map_err(failed)?;
            let weights = Weights::load(device, description, layout, &**source, Dtype::Bf16)?;
            tracing::warn!("numbers that f16 has no room for; the model goes on in bf16");
            *newest = Arc::new(weights);
        }
        drop(newest);
        self.follow()
    }

    /// Goes over to the newest weights. Who is last to do so frees those before.
    fn follow(&mut self) -> Result<(), EngineError> {
        let newest = self.model.newest().clone();
        if !Arc::ptr_eq(&newest, &self.weights) {
            self.passes.clear();
            self.weights = newest;
        }
        if self.passes.is_empty() { self.prepare() } else { Ok(()) }
    }
}

impl<D: Device> Engine for GpuEngine<D> {
    fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
        self.follow()?;
        let mut rows = self.rows(batch)?;
        let is_finite = rows.iter().all(|value| value.is_finite());
        if !is_finite && self.weights.dtype == Dtype::F16 && self.device.has_bf16() {
            self.widen()?;
            rows = self.rows(batch)?;
        }
        Output::new(rows, batch.batch_size())
    }

    /// With memory for its hidden states; none if there is no room for them.
    fn another(&self) -> Option<Self> {
        let device = self.device.another().map_err(failed);
        match device.and_then(|device| Self::of_model(device, self.model.clone())) {
            Ok(engine) => Some(engine),
            Err(error) => {
                let error: &dyn Error = &error;
                tracing::warn!(error, "one batch at a time");
                None
            }
        }
    }
}

/// Cuts a batch into runs of sequences that a pass has room for.
fn parts(batch: &Batch) -> Result<Vec<Range<usize>>, EngineError> {
    let mut parts = Vec::new();
    let mut start = 0;
    for end in 1..=batch.batch_size() {
        let num_tokens =
            |first: usize| (batch.cu_seqlens()[end] - batch.cu_seqlens()[first]) as usize;
        if !Size::LARGEST.has_room_for(num_tokens(end - 1), 1) {
            let (len, most) = (num_tokens(end - 1), Size::LARGEST.max_tokens);
            let reason = format!("a sequence of {len} tokens; a pass has room for {most}");
            return Err(EngineError::Input { reason });
        }
        if !Size::LARGEST.has_room_for(num_tokens(start), end - start) {
            parts.push(start..end - 1);
            start = end - 1;
        }
    }
    if start < batch.batch_size() {
        parts.push(start..batch.batch_size());
    }
    Ok(parts)
}

fn unsupported(reason: impl Into<String>) -> EngineError {
    EngineError::Unsupported { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_where_a_pass_is_full() {
        let of = |seq_lens: &[usize]| {
            let mut batch = Batch::new();
            seq_lens.iter().for_each(|&len| batch.push(&vec![1; len]));
            parts(&batch)
        };
        assert!(of(&[]).unwrap().is_empty());
        assert_eq!(of(&[16_384]).unwrap().len(), 1);
        assert_eq!(of(&[16_384, 1, 2]).unwrap(), [0..1, 1..3]);
        assert_eq!(of(&[8000, 8000, 8000]).unwrap(), [0..2, 2..3]);
        assert_eq!(of(&[1; 2049]).unwrap(), [0..2048, 2048..2049]);
        let reason = of(&[1, 16_385]).unwrap_err().to_string();
        assert_eq!(reason, "a sequence of 16385 tokens; a pass has room for 16384");
    }
}
