"""Compiled from kernels.c if there is a C compiler; otherwise torch computes the same. Use `model/net/cpu/rows.py`.

Tensors are addresses of contiguous memory: bfloat16, weights float32. A float x is a byte round(x / step) + zero, cut
to 0 to 255. Rows that are normalised have at most 4096 numbers. The GIL is released.
"""

def available() -> bool:
    """Whether the processor has AVX-512 with bfloat16. Without it the functions below must not be called."""

def layer_norm(
    x: int, out: int, rows: int, channels: int, weight: int, bias: int, eps: float, step: float, zero: int, /
) -> None:
    """Write the layer norm of each row to `out`: as bytes, or as bfloat16 where `step` is zero."""

def softmax(x: int, rows: int, length: int, scale: float, bias: int, biases: int, /) -> None:
    """x = softmax(x * scale + bias) by row, in place. `bias` has so many rows; no rows: no bias."""

def scale_and_shift(x: int, out: int, rows: int, channels: int, scale: int, shift: int, /) -> None:
    """Write x * scale + shift, by channel, to `out`."""

def quantise(x: int, out: int, count: int, step: float, zero: int, /) -> None:
    """Write x as bytes to `out`."""

def channel_mlp(
    x: int,
    residual: int,
    out: int,
    rows: int,
    channels: int,
    hidden: int,
    first: tuple[int, ...],
    second: tuple[int, ...],
    step: float,
    zero: int,
    parallel: int,
    threads: int,
    /,
) -> None:
    """Write residual + second(bytes(GELU(first(x)))), by row, to `out`; `x` are bytes. Needs AVX-512 VNNI.

    A layer is the addresses of its weights, int8 (outputs / 64, inputs / 4, 64, 4); of what is added to a sum, int32;
    of what a sum is multiplied with, float32; and of its bias. Both sizes are multiples of 64. `step` and `zero` are of
    the second layer's inputs. `parallel` is the address of `GOMP_parallel`, or 0: one thread.
    """

def linear(
    x: int,
    residual: int,
    out: int,
    rows: int,
    inputs: int,
    outputs: int,
    weight: int,
    bias: int,
    activation: int,
    parallel: int,
    threads: int,
    /,
) -> None:
    """Write a linear layer of bfloat16, by row, to `out`; needs AVX-512 VNNI.

    The weight is bfloat16 (outputs / 64, inputs / 2, 64, 2). Outputs are a multiple of 64, inputs of 2. `residual` is
    added, or 0; without one `activation` is 0 for none, 1 for ReLU, 2 for GELU.
    """

Axis = tuple[int, int, int]
"""Addresses: number i lies between x[low[i]] and x[high[i]], int32, with weight[i] of the latter, float32."""

def label_rows(
    logits: int,
    width: int,
    classes: int,
    stride: int,
    input_rows: Axis,
    input_columns: Axis,
    input_width: int,
    rows: Axis,
    columns: Axis,
    picture_width: int,
    labels: int,
    levels: int,
    odds: int,
    counts: int,
    sums: int,
    first: int,
    last: int,
    /,
) -> bool:
    """Label a picture's rows from `first` to `last`, of at most 256 classes; whether all highest logits are finite.

    `logits` are float32 (height, width, stride): the classes, then -1e30 up to `stride`, which is a multiple of 16
    where there are more than 16 classes. They are resized to rows and columns of the network's input, and these to
    those of the picture; indices of columns are multiples of `stride`. `labels` and `levels` are uint8 (height, width),
    `odds` float32 (classes,); `levels` and `odds` may be 0. What is counted is added to `counts`, int64, and `sums`,
    float64, (classes,).

    Raises:
        MemoryError
    """
