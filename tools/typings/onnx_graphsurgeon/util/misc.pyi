from typing import Any

from onnx_graphsurgeon import Node, Tensor

class SynchronizedList(list[Any]):
    parent_obj: Node | Tensor
    field_name: str
