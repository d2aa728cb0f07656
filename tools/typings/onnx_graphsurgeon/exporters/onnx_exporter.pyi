from typing import Any

import onnx

from onnx_graphsurgeon import Constant, Tensor

class OnnxExporter:
    @staticmethod
    def export_attributes(attrs: dict[str, Any]) -> list[onnx.AttributeProto]: ...
    @staticmethod
    def export_sparse_tensor_proto(tensor: Constant) -> onnx.SparseTensorProto: ...
    @staticmethod
    def export_tensor_proto(tensor: Constant) -> onnx.TensorProto: ...
    @staticmethod
    def export_value_info_proto(tensor: Tensor, do_type_check: bool) -> onnx.ValueInfoProto: ...
