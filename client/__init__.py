"""Python client of the deqlm server: `client.sync.Client` and `client.aio.AsyncClient`.

Nothing is imported here, so that a command pays only for the half it uses.
"""
