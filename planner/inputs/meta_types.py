"""`Tensor.type` on the meta device, where torch names a type that it does not take back (`y.type(x.type())`)."""

from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float32: "FloatTensor",
    torch.float64: "DoubleTensor",
    torch.float16: "HalfTensor",
    torch.bfloat16: "BFloat16Tensor",
    torch.int64: "LongTensor",
    torch.int32: "IntTensor",
    torch.int16: "ShortTensor",
    torch.int8: "CharTensor",
    torch.uint8: "ByteTensor",
    torch.bool: "BoolTensor",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def meta_type(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The name of a meta tensor's type as on the CPU, or the tensor in the dtype that such a name, or a dtype, asks for;
    `NotImplemented` for any other call.
    """
    tensor, wanted = args[0], args[1] if len(args) > 1 else kwargs.get("dtype")
    if not isinstance(tensor, Tensor) or not tensor.is_meta:
        return NotImplemented
    if wanted is None:
        return f"torch.{_NAMES[tensor.dtype]}" if tensor.dtype in _NAMES else NotImplemented
    dtype = _DTYPES.get(str(wanted).rpartition(".")[2]) if isinstance(wanted, str) else wanted
    return tensor.to(dtype) if isinstance(dtype, torch.dtype) else NotImplemented
