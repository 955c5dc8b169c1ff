"""The version of etcd whose interface is spoken, as its clients are told."""

from __future__ import annotations

from typing import Final

SERVER_VERSION: Final = "3.7.0"
CLUSTER_VERSION: Final = "3.7.0"
