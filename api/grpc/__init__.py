"""HTTP/2 and gRPC for servers: a codec without I/O, and a thin asyncio shell around it.

    bytes -> connection.ServerConnection (RFC 9113) -> calls (gRPC) -> handlers
    handlers -> call.reply / call.send -> connection output -> one write a turn

`server.GrpcServer` is where services are registered; `shell.GrpcProtocol` carries its bytes.
"""
