"""Random numbers that are the same on every backend, host and device.

`keras.random` draws different numbers on each backend, and refuses a traced
seed outside JAX. So the layers here draw with Threefry-2x32, the counter-based
generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3"
(SC 2011), keyed by (seed, step): a number depends only on the seed, the step,
the position in the batch and the stream.

Everything is 32-bit two's complement arithmetic with Python operators that
NumPy, JAX, TensorFlow and PyTorch share, so one implementation serves all.
"""

from __future__ import annotations

from typing import Any

# 20 rounds, the number for which the paper (table 2) claims a safety margin.
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24) * 2 + (13, 15, 26, 6)
_PARITY = 0x1BD11BDA
# Streams of a step: RandAugment's layers count from 0.
MIXUP_STREAM = 1 << 30


def _shift_right(x: Any, bits: int) -> Any:
    """Logical shift; the mask removes the sign bits that `//` shifts in."""
    return (x // (1 << bits)) & ((1 << (32 - bits)) - 1)


def _rotate_left(x: Any, bits: int) -> Any:
    # The power of two wraps to a negative number at bit 31, as it should.
    return (x * (1 << bits)) | _shift_right(x, 32 - bits)


def threefry(key: tuple[Any, ...], counter: tuple[Any, ...]) -> tuple[Any, Any]:
    """Two random 32-bit words, int32, for each counter; `key` broadcasts."""
    keys = (*key, key[0] ^ key[1] ^ _PARITY)
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for i, bits in enumerate(_ROTATIONS, start=1):
        a = a + b
        b = _rotate_left(b, bits) ^ a
        if i % 4 == 0:
            a = a + keys[i // 4 % 3]
            b = b + keys[(i // 4 + 1) % 3] + i // 4
    return a, b


def below(bits: Any, limit: int) -> Any:
    """Scales 32 random bits to 0, ..., `limit` - 1, for limits below 32,768.

    The high half of a 64-bit product, computed from 31-bit products.
    """
    low = (bits & 0xFFFF) * limit
    return (_shift_right(bits, 16) * limit + low // 65536) // 65536


def top_bits(bits: Any, count: int) -> Any:
    """The highest `count` bits, as 0, ..., 2^count - 1."""
    # In two steps, because 2^31 does not fit int32.
    return _shift_right(bits, 1) // (1 << (31 - count))
