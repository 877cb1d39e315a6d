"""The limit of speed: the floating-point operations and the bytes to move that one unit of each measure needs at least.

Operations are those of matrix products; a multiply-add counts as 2. Bytes are those of float32 tensors that are too
large to stay in a cache until they are read: each is written once and read once, and gathered rows are read once.
Elementwise arithmetic, indices and biases are left out, since they are negligible. Weights that a batch shares are left
out too, as for an infinitely large batch, and so is work that does not depend on the number of tokens, such as building
the tables.

The time limit is the larger one of the two times, as if operations and copies could run at the same time. Not here: the
machine's rates (`machine.py`), the measured times (`cases.py`).

Letters: d is d_model, m is d_mlp, s is d_sae, b is the number of branches of the MLP (1 plain, 2 gated).
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.machine import Rates
from benchmarks.shapes import Shape

FLOAT, DOUBLE = 4, 8  # bytes
SWEEP_POINTS = 100


@dataclass(frozen=True)
class Cost:
    """The floating-point operations and the bytes to move of one unit."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> Cost:
        return Cost(times * self.flops, times * self.bytes)

    def seconds(self, rates: Rates) -> float:
        """Return the shortest time that a unit can take on a machine with these rates."""
        return max(self.flops / rates.matmul, self.bytes / rates.copy)

    def bound(self, rates: Rates) -> str:
        """Return which of the two rates determines that time."""
        return "matrix products" if self.flops / rates.matmul >= self.bytes / rates.copy else "memory"


def mlp(shape: Shape) -> Cost:
    """Return the cost per MLP input: x W_b for b branches [d, m], h W_out [m, d]; the branches and h are written and
    read."""
    d, m, b = shape.d_model, shape.d_mlp, shape.branches
    return Cost(2 * d * m * (b + 1), FLOAT * 2 * (b + 1) * m)


def encoder(shape: Shape) -> Cost:
    """Return the cost per input of one SAE: x W_enc [d, s]; it writes the pre-activations, and TopK reads them."""
    return Cost(2 * shape.d_model * shape.d_sae, FLOAT * 2 * shape.d_sae)


def jacobian(shape: Shape) -> Cost:
    """Return the cost per token of J = E (sum_b c_b D_b)^T, [k, m] by [m, k]. k rows of m elements are gathered for E,
    k rows of b m elements for D; the slopes, b m elements, are written and read; J is written."""
    k, m, b = shape.k, shape.d_mlp, shape.branches
    return Cost(2 * k * k * m, FLOAT * (k * (b + 1) * m + 2 * b * m + k * k))


def sandwich(shape: Shape) -> Cost:
    """Return the cost per token of the MLP, both encoders and the Jacobian."""
    return mlp(shape) + 2 * encoder(shape) + jacobian(shape)


def histogram(shape: Shape) -> Cost:
    """Return the cost per token: a sandwich; J is read; for each element of J a float64 sum is read and written."""
    return sandwich(shape) + Cost(0, shape.k**2 * (FLOAT + 2 * DOUBLE))


def ablation(shape: Shape) -> Cost:
    """Return the cost per sample of the diagonal by the direct method: the MLP and the output encoder at the ablated
    input, and 1/k of the token's own sandwich."""
    return mlp(shape) + encoder(shape) + 1 / shape.k * sandwich(shape)


def function_shapes(shape: Shape) -> Cost:
    """Return the cost per curve by the direct method: the MLP and the output encoder at each point, and, since each
    token has k curves, 1/k of the cost of the token's own latents."""
    return SWEEP_POINTS * (mlp(shape) + encoder(shape)) + 1 / shape.k * (mlp(shape) + 2 * encoder(shape))


def quality(shape: Shape) -> Cost:
    """Return the cost per token: one clean pass through the whole model; the part after the layer for five splices
    (input, output, both, zeros for the input, zeros for the output); the MLP once more for the input's reconstruction;
    three encodings (of the input, of the true output, of the output at the reconstructed input); the Jacobian. The MLP
    is not run for zero inputs, since they give the same output for every token."""
    after = (shape.n_layers - shape.layer - 1) * _block(shape) + _prediction(shape)
    clean = (shape.layer + 1) * _block(shape) + after
    return clean + 5 * after + mlp(shape) + 3 * encoder(shape) + jacobian(shape)


def _block(shape: Shape) -> Cost:
    """Return the cost per token of a block: query, key, value and output [d, d] each, causal attention over half of the
    document on average, and the MLP."""
    d, tokens = shape.d_model, shape.document_tokens
    scores = shape.n_heads * tokens / 2
    return Cost(8 * d**2 + 2 * 2 * d * tokens / 2, FLOAT * (2 * 4 * d + 2 * scores)) + mlp(shape)


def _prediction(shape: Shape) -> Cost:
    """Return the cost per token of the unembedding [d, vocabulary]; logits are written and read."""
    return Cost(2 * shape.d_model * shape.vocabulary, FLOAT * 2 * shape.vocabulary)


def training_step(shape: Shape, batch: int, active: tuple[int, int] | None) -> Cost:
    """Return the cost of a training step with `batch` tokens: for each token the MLP and both SAEs, forward and
    backward; once per step Adam, which reads parameters, gradients and two moments, writes all of them but the
    gradients, and zeroes the gradients.

    Args:
        active: how many input and output latents are active in the batch; None for a step without the Jacobian.
    """
    d, s = shape.d_model, shape.d_sae
    adam = Cost(0, FLOAT * 8 * 2 * (2 * d * s + s + d))
    step = batch * (mlp(shape) + 2 * encoder(shape) + 2 * _sparse_decoder(shape)) + adam
    return step if active is None else step + _jacobian_loss(shape, batch, *active)


def _sparse_decoder(shape: Shape) -> Cost:
    """Return the cost per token in one SAE: forward, the reconstruction from k rows; backward, the gradients of the k
    activations, of the k rows of W_dec and of the k columns of W_enc. Rows are read twice; the gradient rows of W_dec
    and of W_enc are read and written."""
    return Cost(8 * shape.d_model * shape.k, FLOAT * 6 * shape.d_model * shape.k)


def _jacobian_loss(shape: Shape, batch: int, active_inputs: int, active_outputs: int) -> Cost:
    """Return the cost of the Jacobian loss in a step. Once per step, for the active latents' rows of both tables: their
    products [rows, d] by [d, m], forward and backward; the rows are written, their gradients zeroed and read. For each
    token: J forward and its two gradients; rows are gathered, and gradient rows read and written."""
    d, m, b, k = shape.d_model, shape.d_mlp, shape.branches, shape.k
    rows = b * active_inputs + active_outputs  # of m elements
    tables = Cost(2 * 2 * rows * d * m, FLOAT * 3 * rows * m)
    token = Cost(3 * 2 * k**2 * m, FLOAT * (3 * k * (b + 1) * m + 2 * b * m))
    return tables + batch * token


def examples(shape: Shape, prompt_tokens: int) -> Cost:
    """Return the cost per token of a prompt: a sandwich, and the token's share of reading the weights, which is not
    negligible for so few tokens."""
    d, m, b = shape.d_model, shape.d_mlp, shape.branches
    weights = Cost(0, FLOAT * (d * m * (b + 1) + 2 * d * shape.d_sae))
    return sandwich(shape) + 1 / prompt_tokens * weights


def loading(file_bytes: int) -> Cost:
    """Return the cost of loading a pair: its file is read once from the page cache and written once into the process's
    own memory."""
    return Cost(0, 2 * file_bytes)
