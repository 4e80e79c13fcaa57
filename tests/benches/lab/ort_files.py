"""The graphs that ONNX Runtime might run fastest: as exported and fused, in f32 and int8."""

import logging

from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model

from .encoders import NUM_HEADS

AS_EXPORTED, FUSED, FUSED_BUT_ATTENTION = "as exported", "fused", "fused but attention"
LINEAR_OPS = ("MatMul", "Gemm", "Attention")


def paths(shape, exported, folder):
    """Where each graph is: by precision, then by what ONNX Runtime's own transformer optimizer did
    to it before the session optimizes it once more.
    """
    f32 = {AS_EXPORTED: exported}
    for fusion in (FUSED, FUSED_BUT_ATTENTION):
        f32[fusion] = folder / f"{shape.name}.{fusion.replace(' ', '-')}.onnx"
    return {"f32": f32, "int8": {key: path.with_suffix(".int8.onnx") for key, path in f32.items()}}


def write(shape, exported, paths):
    """Writes all of `paths` but the exported graph itself."""
    logging.getLogger().setLevel(logging.ERROR)
    for fusion, path in paths["f32"].items():
        if fusion != AS_EXPORTED:
            fuse(shape, exported, path, with_attention=fusion == FUSED)
        quantize(path, paths["int8"][fusion])


def fuse(shape, source, target, with_attention=True):
    """What ONNX Runtime's transformer optimizer makes of the graph."""
    options = FusionOptions("bert")
    options.enable_attention = with_attention
    model = optimize_model(
        str(source),
        model_type="bert",
        num_heads=NUM_HEADS,
        hidden_size=shape.hidden_size,
        optimization_options=options,
        opt_level=0,
    )
    model.save_model_to_file(str(target))


def quantize(source, target, op_types=LINEAR_OPS):
    """The graph with 8-bit weights in operators of these types."""
    quantize_dynamic(
        source,
        target,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(op_types),
        # For what comes out of fused operators, whose types the quantizer does not know.
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
