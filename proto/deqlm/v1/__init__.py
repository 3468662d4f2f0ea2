"""Stubs of the public gRPC contract, version 1; generated from the .proto files beside this one."""
