"""The architectures of the AugReg study, one row each.

Widths, depths and head counts: Table 2 of "How to train your ViT?"
(arXiv 2106.10270) and `vit_jax/configs/models.py` of
google-research/vision_transformer, which also gives the ResNet stages. B/8
has the widths of B/16.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """One architecture.

    Args:
        name: The builder's name, for example `"R26_ViT_S32"`.
        release: The prefix of its released files, for example `"R26_S_32"`.
        patch_size: Side of a patch in pixels, or in cells of the stem's
            output where there is a ResNet stem.
        width: Size of a token.
        depth: Number of Transformer blocks.
        num_heads: Attention heads of a block.
        mlp_dim: Hidden units of a block's MLP.
        stages: `None` without a ResNet stem; otherwise the number of
            bottleneck units of each stage, `()` for the stem's root alone.
    """

    name: str
    release: str
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    stages: tuple[int, ...] | None = None

    @property
    def stride(self) -> int:
        """Pixels from one token to the next.

        The root of a ResNet stem divides by 4 (convolution and pooling),
        and each stage after the first by 2.
        """
        if self.stages is None:
            return self.patch_size
        return self.patch_size * 4 * 2 ** max(len(self.stages) - 1, 0)


# width, depth, num_heads, mlp_dim
_TI = (192, 12, 3, 768)
_S = (384, 12, 6, 1536)
_B = (768, 12, 12, 3072)
_L = (1024, 24, 16, 4096)

VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("ViT_Ti16", "Ti_16", 16, *_TI),
        Variant("ViT_Ti32", "Ti_32", 32, *_TI),
        Variant("ViT_S16", "S_16", 16, *_S),
        Variant("ViT_S32", "S_32", 32, *_S),
        Variant("ViT_B8", "B_8", 8, *_B),
        Variant("ViT_B16", "B_16", 16, *_B),
        Variant("ViT_B32", "B_32", 32, *_B),
        Variant("ViT_L16", "L_16", 16, *_L),
        Variant("ViT_L32", "L_32", 32, *_L),
        # No stage: 8x8 patches on the root's output, one token for 32 pixels.
        Variant("R_ViT_Ti16", "R_Ti_16", 8, *_TI, stages=()),
        Variant("R26_ViT_S32", "R26_S_32", 1, *_S, stages=(2, 2, 2, 2)),
        Variant("R26_ViT_B32", "R26_B_32", 1, *_B, stages=(2, 2, 2, 2)),
        Variant("R50_ViT_B16", "R50_B_16", 1, *_B, stages=(3, 4, 9)),
        Variant("R50_ViT_L32", "R50_L_32", 1, *_L, stages=(3, 4, 6, 3)),
    )
}


def identify(sizes: Variant) -> Variant | None:
    """The row with the same sizes, whatever the argument is called.

    Args:
        sizes: An architecture, such as a model's `sizes`.

    Returns:
        One of `VARIANTS`, or `None`.
    """
    for variant in VARIANTS.values():
        same = dataclasses.replace(
            sizes, name=variant.name, release=variant.release
        )
        if same == variant:
            return variant
    return None
