from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx_graphsurgeon import Tensor

class OnnxImporter:
    @staticmethod
    def get_opset(model_or_func: onnx.ModelProto) -> int | None: ...
    @staticmethod
    def import_tensor(onnx_tensor: onnx.ValueInfoProto | onnx.TensorProto | onnx.SparseTensorProto) -> Tensor: ...
    @staticmethod
    def import_attributes(
        onnx_attributes: Iterable[onnx.AttributeProto],
        tensor_map: Mapping[str, Tensor],
        subgraph_tensor_map: Mapping[str, Tensor],
        opset: int | None,
        import_domains: Any,
    ) -> OrderedDict[str, Any]: ...
