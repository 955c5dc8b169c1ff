"""etcd's v3 API: what its clients and tools ask of a store, over gRPC and as JSON.

    call -> rpc (decode, gate) -> kv, lease, watch, ... -> Store -> encode -> call

`door.EtcdDoor` registers every service; `gateway.Gateway` answers the same calls as JSON over
HTTP/1.1. Handlers see a call through `rpc.Unary` and `rpc.Streaming`, whichever it came by.
"""
