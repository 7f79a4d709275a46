"""The architectures of the AugReg study, one row each.

Widths, depths and head counts: Table 1 of "How to train your ViT?"
(arXiv 2106.10270); the hybrids' stages: its Table 2 and
`vit_jax/configs/models.py` of google-research/vision_transformer. B/8 has the
widths of B/16.
"""

from __future__ import annotations

import dataclasses
import difflib
import re


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The hyper-parameters of an architecture."""

    patch_size: int  # side in pixels; in cells of a ResNet stem's output
    width: int  # of a token
    depth: int  # Transformer blocks
    num_heads: int
    mlp_dim: int  # hidden units
    # Bottleneck units of each stage of a ResNet stem; `()` is its root only.
    stages: tuple[int, ...] | None = None

    @property
    def stride(self) -> int:
        """Pixels from one token to the next."""
        if self.stages is None:
            return self.patch_size
        # The root divides by 4, each stage after the first by 2.
        return self.patch_size * 4 * 2 ** max(len(self.stages) - 1, 0)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named architecture."""

    name: str  # the builder's, for example "R26_ViT_S32"
    release: str  # the prefix of its released files: "R26_S_32"
    sizes: Sizes

    @property
    def paper_name(self) -> str:
        """The paper's name, for example `"R26+S/32"`."""
        model, _, patch = self.release.rpartition("_")
        return f"{model.replace('_', '+')}/{patch}" if model else patch


# width, depth, num_heads, mlp_dim
_TI = (192, 12, 3, 768)
_S = (384, 12, 6, 1536)
_B = (768, 12, 12, 3072)
_L = (1024, 24, 16, 4096)

VARIANTS: dict[str, Variant] = {
    name: Variant(name, release, sizes)
    for name, release, sizes in (
        ("ViT_Ti16", "Ti_16", Sizes(16, *_TI)),
        ("ViT_Ti32", "Ti_32", Sizes(32, *_TI)),
        ("ViT_S16", "S_16", Sizes(16, *_S)),
        ("ViT_S32", "S_32", Sizes(32, *_S)),
        ("ViT_B8", "B_8", Sizes(8, *_B)),
        ("ViT_B16", "B_16", Sizes(16, *_B)),
        ("ViT_B32", "B_32", Sizes(32, *_B)),
        ("ViT_L16", "L_16", Sizes(16, *_L)),
        ("ViT_L32", "L_32", Sizes(32, *_L)),
        # No stage: 8x8 patches on the root's output, one token for 32 pixels.
        ("R_ViT_Ti16", "R_Ti_16", Sizes(8, *_TI, stages=())),
        ("R26_ViT_S32", "R26_S_32", Sizes(1, *_S, stages=(2, 2, 2, 2))),
        ("R26_ViT_B32", "R26_B_32", Sizes(1, *_B, stages=(2, 2, 2, 2))),
        ("R50_ViT_B16", "R50_B_16", Sizes(1, *_B, stages=(3, 4, 9))),
        ("R50_ViT_L32", "R50_L_32", Sizes(1, *_L, stages=(3, 4, 6, 3))),
    )
}


_WORDS = {"vit": "", "tiny": "ti", "small": "s", "base": "b", "large": "l"}


def _letters(name: str) -> str:
    """Maps "ViT_B16", "B/16", "vit_base_patch16_224" to "b16"."""
    name = re.sub(r"patch(\d+)_\d+$", r"\1", name.lower())  # timm's
    name = re.sub("[^a-z0-9]", "", name)
    for word, short in _WORDS.items():
        name = name.replace(word, short)
    return name


_BY_LETTERS = {_letters(v.release): v for v in VARIANTS.values()}


def find(name: str | Variant) -> Variant:
    """Returns the architecture that a name stands for.

    The builder's name ("ViT_B16"), the release's ("B_16") or the paper's
    ("B/16"), in any case. An unknown one is a `ValueError`.

    >>> find("R26+S/32").name
    'R26_ViT_S32'
    """
    if isinstance(name, Variant):
        return name
    if variant := match(name):
        return variant
    # The cut bounds the time that difflib takes.
    near = difflib.get_close_matches(str(name)[:80], VARIANTS)
    raise ValueError(
        f"There is no architecture {name!a}. Nearest: "
        f"{', '.join(near or VARIANTS)}. The release's and the paper's names, "
        "such as 'B_16' and 'B/16', are understood too."
    )


def match(name: object) -> Variant | None:
    """Returns the architecture that a name stands for, `None` if none."""
    return _BY_LETTERS.get(_letters(name)) if isinstance(name, str) else None


def identify(sizes: Sizes) -> Variant | None:
    """Returns the named architecture with these sizes, or `None`."""
    return next((v for v in VARIANTS.values() if v.sizes == sizes), None)
