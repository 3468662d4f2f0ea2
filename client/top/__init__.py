"""What ``deqlm top`` shows of a server."""
