"""The limit: floating-point operations that must be done and bytes that must be moved, for one unit of each measure.

Operations are those of the matrix products, 2 for a multiply-add. Bytes are float32 tensors that are too large for a
cache together with what comes between their writing and their reading: each written once and read once, gathered rows
read once. Left out, since they vanish beside these: elementwise arithmetic, indices, biases. Weights are left out
where a batch shares them: the limit is that of a batch without end. What costs the same however many tokens there are
(building the tables) is left out as well.

The time of the limit is the larger of the two, as if both could go on at once. Not here: the machine's rates
(`machine.py`) and what was reached (`cases.py`).

Letters: d d_model, m d_mlp, s d_sae, b branches of the MLP (1 plain, 2 gated).
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.machine import Rates
from benchmarks.shapes import Shape

FLOAT, DOUBLE = 4, 8  # bytes
SWEEP_POINTS = 100


@dataclass(frozen=True)
class Cost:
    """Of one unit."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> Cost:
        return Cost(times * self.flops, times * self.bytes)

    def seconds(self, rates: Rates) -> float:
        """The shortest time a unit can take on a machine of these rates."""
        return max(self.flops / rates.matmul, self.bytes / rates.copy)

    def bound(self, rates: Rates) -> str:
        """Which of the two rates sets that time."""
        return "matrix products" if self.flops / rates.matmul >= self.bytes / rates.copy else "memory"


def mlp(shape: Shape) -> Cost:
    """An MLP input: x W_b for b branches [d, m], h W_out [m, d]; the branches and h are written and read."""
    d, m, b = shape.d_model, shape.d_mlp, shape.branches
    return Cost(2 * d * m * (b + 1), FLOAT * 2 * (b + 1) * m)


def encoder(shape: Shape) -> Cost:
    """An input of one SAE: x W_enc [d, s]; pre-activations are written by the product and read by TopK."""
    return Cost(2 * shape.d_model * shape.d_sae, FLOAT * 2 * shape.d_sae)


def jacobian(shape: Shape) -> Cost:
    """A token's E (sum_b c_b D_b)^T, [k, m] by [m, k]. k rows of m are gathered for E, k rows of b m for D; the slopes,
    b m, are written and read; J is written."""
    k, m, b = shape.k, shape.d_mlp, shape.branches
    return Cost(2 * k * k * m, FLOAT * (k * (b + 1) * m + 2 * b * m + k * k))


def sandwich(shape: Shape) -> Cost:
    """A token: the MLP, both encoders, the Jacobian."""
    return mlp(shape) + 2 * encoder(shape) + jacobian(shape)


def histogram(shape: Shape) -> Cost:
    """A token: a sandwich; J is read; a float64 sum for each of its elements is read and written."""
    return sandwich(shape) + Cost(0, shape.k**2 * (FLOAT + 2 * DOUBLE))


def ablation(shape: Shape) -> Cost:
    """A sample of the diagonal by the direct method: the MLP and the output encoder at the ablated input, and 1/k of
    the token's own sandwich."""
    return mlp(shape) + encoder(shape) + 1 / shape.k * sandwich(shape)


def function_shapes(shape: Shape) -> Cost:
    """A curve by the direct method: the MLP and the output encoder at each point, and, with k curves a token, 1/k of
    the token's own latents."""
    return SWEEP_POINTS * (mlp(shape) + encoder(shape)) + 1 / shape.k * (mlp(shape) + 2 * encoder(shape))


def quality(shape: Shape) -> Cost:
    """A token: one clean pass, whole; of five splices (input, output, both, zeros for the input, zeros for the output)
    what comes after the layer; the MLP once more for the input's reconstruction; three encodings (the input's, the
    true output's, that of the output at the reconstructed input); the Jacobian. Zeros in the MLP's input give the same
    output for every token."""
    after = (shape.n_layers - shape.layer - 1) * _block(shape) + _prediction(shape)
    clean = (shape.layer + 1) * _block(shape) + after
    return clean + 5 * after + mlp(shape) + 3 * encoder(shape) + jacobian(shape)


def _block(shape: Shape) -> Cost:
    """A token: query, key, value and output [d, d] each, causal attention over half of the document on average, MLP."""
    d, tokens = shape.d_model, shape.document_tokens
    scores = shape.n_heads * tokens / 2
    return Cost(8 * d**2 + 2 * 2 * d * tokens / 2, FLOAT * (2 * 4 * d + 2 * scores)) + mlp(shape)


def _prediction(shape: Shape) -> Cost:
    """A token: the unembedding [d, vocabulary]; logits are written and read."""
    return Cost(2 * shape.d_model * shape.vocabulary, FLOAT * 2 * shape.vocabulary)


def training_step(shape: Shape, batch: int, active: tuple[int, int] | None) -> Cost:
    """A step of `batch` tokens: per token the MLP and both SAEs forward and backward; per step Adam, which reads
    parameter, gradient and two moments, writes all but the gradient, and has that set to zero.

    `active`: how many input and output latents are active in the batch; None: a step without the Jacobian."""
    d, s = shape.d_model, shape.d_sae
    adam = Cost(0, FLOAT * 8 * 2 * (2 * d * s + s + d))
    step = batch * (mlp(shape) + 2 * encoder(shape) + 2 * _sparse_decoder(shape)) + adam
    return step if active is None else step + _jacobian_loss(shape, batch, *active)


def _sparse_decoder(shape: Shape) -> Cost:
    """A token in one SAE: the reconstruction from k rows; backward, the gradients of the k activations, of the k rows
    of W_dec and of the k columns of W_enc. Rows are read twice; two kinds of gradient rows are read and written."""
    return Cost(8 * shape.d_model * shape.k, FLOAT * 6 * shape.d_model * shape.k)


def _jacobian_loss(shape: Shape, batch: int, active_inputs: int, active_outputs: int) -> Cost:
    """A step. Of both tables the active latents' rows: their products [rows, d] by [d, m], forward and backward; the
    rows are written, their gradients zeroed and read. A token: J forward and its two gradients; rows gathered, and
    gradient rows read and written."""
    d, m, b, k = shape.d_model, shape.d_mlp, shape.branches, shape.k
    rows = b * active_inputs + active_outputs  # of m elements
    tables = Cost(2 * 2 * rows * d * m, FLOAT * 3 * rows * m)
    token = Cost(3 * 2 * k**2 * m, FLOAT * (3 * k * (b + 1) * m + 2 * b * m))
    return tables + batch * token


def examples(shape: Shape, prompt_tokens: int) -> Cost:
    """A prompt token: a sandwich, and its part of the weights, which a prompt is too short to make vanish."""
    d, m, b = shape.d_model, shape.d_mlp, shape.branches
    weights = Cost(0, FLOAT * (d * m * (b + 1) + 2 * d * shape.d_sae))
    return sandwich(shape) + 1 / prompt_tokens * weights


def loading(file_bytes: int) -> Cost:
    """A pair: its file is read once, from the page cache, and written once, into the process's own memory."""
    return Cost(0, 2 * file_bytes)
