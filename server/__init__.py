"""The inference server: a gRPC edge over one engine per model."""
