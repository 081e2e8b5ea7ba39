"""What `async for` needs."""

import asyncio


async def next_piece(generation):
    """The next piece of an answer, waited for on a thread. Who stops waiting ends the answer."""
    try:
        return await asyncio.to_thread(generation._next)
    except asyncio.CancelledError:
        generation.cancel()
        raise
