"""The published ``.pth`` layout: names of its parameters and how ours translate to them.

A ``.pth`` file is a ``torch.save`` of a state dictionary that holds every name, tied or not, with
the linear maps of attention as 1×1 convolutions, and sometimes a ``module.`` prefix.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from deq_model.attention import inverse_frequency
from deq_model.config import ModelConfig
from deq_model.errors import CheckpointError

_PREFIX = "module."
_INVERSE_FREQUENCY = "pos_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of the published layout.

    Attributes:
        published: its name there.
        native: the parameter of ``DEQLanguageModel`` that holds the same numbers.
        trailing: how many dimensions of size 1 the published tensor has at its end.
    """

    published: str
    native: str
    trailing: int = 0


def layout(config: ModelConfig) -> list[Entry]:
    """Every parameter name of the published layout, for a configuration; tied ones repeat.

    Raises:
        CheckpointError: the layout has no place for the configuration's norm.
    """
    if config.norm == "spectral_norm" or config.norm_clip or config.norm_target:
        raise CheckpointError(
            "the .pth layout holds norm weight_norm without norm_clip and norm_target, or none, "
            f"got norm {config.norm}, norm_clip {config.norm_clip}, norm_target "
            f"{config.norm_target}; keep the model as a checkpoint folder"
        )
    return [*_embedding(config), *_function(config), *_softmax(config)]


def _embedding(config: ModelConfig) -> Iterator[Entry]:
    n_table = config.n_cluster if config.div_val > 1 else 1
    for i in range(n_table):
        yield Entry(f"word_emb.emb_layers.{i}.weight", f"embedding.tables.{i}")
    for i in range(n_table if config.has_projections else 0):
        yield Entry(f"word_emb.emb_projs.{i}.weight", f"embedding.projections.{i}")
    yield Entry("inject_conv.weight", "injection.weight", trailing=1)
    yield Entry("inject_conv.bias", "injection.bias")


def _function(config: ModelConfig) -> Iterator[Entry]:
    yield Entry("func.dec_attn.r_w_bias", "f.r_w_bias")
    yield Entry("func.dec_attn.r_r_bias", "f.r_r_bias")
    parts = [
        ("dec_attn.qkv_net", "qkv_net", 1, False),
        ("dec_attn.r_net", "r_net", 1, False),
        ("dec_attn.o_net", "o_net", 1, True),
        ("pos_ff.ff1_net", "ff1_net", 0, True),
        ("pos_ff.ff2_net", "ff2_net", 0, True),
    ]
    for published, native, trailing, bias in parts:
        if bias:
            yield Entry(f"func.{published}.bias", f"f.{native}.bias")
        if config.norm == "weight_norm":
            yield Entry(f"func.{published}.weight_g", f"f.{native}.weight_g", trailing)
            yield Entry(f"func.{published}.weight_v", f"f.{native}.weight_v", trailing)
        else:
            yield Entry(f"func.{published}.weight", f"f.{native}.weight_v", trailing)


def _softmax(config: ModelConfig) -> Iterator[Entry]:
    if config.cutoffs:
        yield Entry("crit.cluster_weight", "softmax.cluster_weight")
        yield Entry("crit.cluster_bias", "softmax.cluster_bias")
    tables = "embedding.tables" if config.tie_weights else "softmax.tables"
    for i in range(config.n_cluster if config.div_val > 1 else 1):
        yield Entry(f"crit.out_layers.{i}.weight", f"{tables}.{i}")
        yield Entry(f"crit.out_layers.{i}.bias", f"softmax.biases.{i}")
    for i in range(config.n_cluster if config.has_projections else 0):
        tied = config.tie_projs[i]
        shared = f"embedding.projections.{i if config.div_val > 1 else 0}"
        native = shared if tied else f"softmax.projections.{i}"
        yield Entry(f"crit.out_projs.{i}.weight", native)


def from_published(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Native parameters from a published state dictionary.

    Raises:
        CheckpointError: missing or extra names, or tied tensors whose numbers differ. Shapes are
            checked where the parameters are loaded.
    """
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    entries = layout(config)
    names = {entry.published for entry in entries}
    missing = sorted(names - set(state))
    extra = sorted(set(state) - names - {_INVERSE_FREQUENCY})
    if missing or extra:
        raise CheckpointError(
            f"state dictionary does not fit the configuration: missing {_some(missing)}; "
            f"extra {_some(extra)}"
        )
    native: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for entry in entries:
        tensor = _squeezed(entry, state[entry.published])
        known = native.setdefault(entry.native, tensor)
        origin = first.setdefault(entry.native, entry.published)
        if known is not tensor and not _same(known, tensor):
            raise CheckpointError(
                f"{entry.published} differs from {origin}, but the configuration ties them"
            )
    return native


def to_published(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A published state dictionary from native parameters; tied names share storage."""
    published = {
        entry.published: state[entry.native].reshape(
            *state[entry.native].shape, *(1,) * entry.trailing
        )
        for entry in layout(config)
    }
    published[_INVERSE_FREQUENCY] = inverse_frequency(config.d_model).float()
    return published


def _squeezed(entry: Entry, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{entry.published} must be a tensor, got {type(tensor).__name__}")
    for _ in range(entry.trailing):
        if tensor.dim() == 0 or tensor.shape[-1] != 1:
            raise CheckpointError(
                f"{entry.published} must end in a dimension of size 1, "
                f"got shape {tuple(tensor.shape)}"
            )
        tensor = tensor.squeeze(-1)
    return tensor


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or one.equal(other)


def _some(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
