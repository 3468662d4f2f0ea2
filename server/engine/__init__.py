"""The engine: sessions, scheduling and solving, without a word of gRPC."""
