"""Compile the .proto files of each folder into its `descriptors.binpb`, one FileDescriptorSet.

    python api/grpc/proto/compile.py        (needs grpcio-tools)

The result is committed: running raftkv needs the protobuf runtime only.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = (HERE, HERE.parent.parent / "etcd" / "proto")


def compile_to(target: Path, folder: Path = HERE) -> None:
    """Write the descriptor set of every .proto in `folder` to `target`."""
    from grpc_tools import protoc

    sources = sorted(path.name for path in folder.glob("*.proto"))
    status = protoc.main(
        ["protoc", f"-I{folder}", "--include_imports", f"--descriptor_set_out={target}", *sources]
    )
    if status:
        sys.exit(status)


if __name__ == "__main__":
    for each in FOLDERS:
        compile_to(each / "descriptors.binpb", each)
