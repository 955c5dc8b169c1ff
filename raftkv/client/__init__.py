"""Python clients for raftkv, asynchronous and synchronous."""
