"""Attention and a recurrent mixer side by side."""

from torch import Tensor, nn

from models.attention import Attention
from models.batch import ForwardBatch
from models.cache import ParallelCache
from models.config import ModelConfig, ParallelSpec
from models.ssm import RecurrentMixer


class Parallel(nn.Module):
    """Both read the same input, each scaled in its own way; what they give is scaled and added."""

    def __init__(self, config: ModelConfig, spec: ParallelSpec, recurrent: RecurrentMixer) -> None:
        super().__init__()
        self.spec = spec
        self.attention = Attention(config, spec.attention)
        self.recurrent = recurrent

    def forward(self, x: Tensor, batch: ForwardBatch, cache: ParallelCache) -> Tensor:
        """x (t, hidden) of a mixed batch -> (t, hidden); both caches are written."""
        attention_in, attention_out, recurrent_in, recurrent_out = self.spec.scales
        attended: Tensor = self.attention(x * attention_in, batch, cache.attention)
        remembered: Tensor = self.recurrent(x * recurrent_in, batch, cache.recurrent)
        return remembered * recurrent_out + attended * attention_out

    def forward_dense(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (b, l, hidden), whole sequences and no cache: the differentiable twin of `forward`."""
        attention_in, attention_out, recurrent_in, recurrent_out = self.spec.scales
        attended = self.attention.forward_dense(x * attention_in, positions)
        remembered = self.recurrent.forward_dense(x * recurrent_in, positions)
        return remembered * recurrent_out + attended * attention_out
