"""The sans-IO core: no asyncio, sockets or clock. Bytes and facts in, entries and frames out."""
