"""Where sessions are kept away from the device: no gRPC, no torch."""
