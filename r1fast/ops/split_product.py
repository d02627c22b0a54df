"""A product of bf16 matrices that keeps fp32's digits, as the sum of two bf16 matrices: logits on a CPU."""

# M rows, N columns, K depth

from __future__ import annotations

import torch
from torch import Tensor

from r1fast.ops.checks import describe
from r1fast.ops.extension import extension
from r1fast.ops.run import run


def pays() -> bool:
    """Whether the extension is built and this CPU multiplies bf16; else two products of PyTorch's are faster."""
    try:
        return bool(extension().build_info()["isa"] == "avx512_bf16")
    except RuntimeError:  # not built: `r1fast doctor` says so
        return False


def split_product(left_MK: Tensor, right_NK: Tensor, high_MN: Tensor, low_MN: Tensor) -> None:
    """`high_MN + low_MN` = left right', accumulated in fp32; |error| <= 2^-16 |result| and the accumulation's.

    All bfloat16 on the CPU, with contiguous rows; K even; `high_MN` and `low_MN` with one stride. `high_MN` is the
    result rounded to bf16. A number does not depend on M, N or the number of threads. Raises ValueError.
    """
    shape = (left_MK.shape[0], right_NK.shape[0])
    tensors = {"left_MK": left_MK, "right_NK": right_NK, "high_MN": high_MN, "low_MN": low_MN}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu" or tensor.ndim != 2 or tensor.stride(1) != 1:
            raise ValueError(
                f"{name} must be a bfloat16 matrix on the CPU with contiguous rows, it is {describe(tensor)} with "
                f"strides {tensor.stride()}"
            )
    depth = left_MK.shape[1]
    if right_NK.shape[1] != depth or depth % 2 or not depth:
        raise ValueError(f"left_MK and right_NK must have one even depth, they have {depth} and {right_NK.shape[1]}")
    if high_MN.shape != shape or low_MN.shape != shape or high_MN.stride() != low_MN.stride():
        raise ValueError(
            f"high_MN and low_MN must be {list(shape)} and lie alike, they are {describe(high_MN)} with strides "
            f"{high_MN.stride()} and {describe(low_MN)} with strides {low_MN.stride()}"
        )
    params = extension().SplitProductParams(
        left=left_MK.data_ptr(),
        right=right_NK.data_ptr(),
        high=high_MN.data_ptr(),
        low=low_MN.data_ptr(),
        left_stride=left_MK.stride(0),
        right_stride=right_NK.stride(0),
        out_stride=high_MN.stride(0),
        num_rows=shape[0],
        num_columns=shape[1],
        depth=depth,
    )
    run("split_product", params, left_MK)
