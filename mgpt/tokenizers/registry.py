"""The families of picture tokenizers by name: a file and a row here is all that a new one takes."""

from mgpt.tokenizers.cosmos import CosmosImage
from mgpt.tokenizers.cosmos_video import CosmosVideo
from mgpt.tokenizers.emu3 import Emu3
from mgpt.tokenizers.ibq import Ibq
from mgpt.tokenizers.llamagen import LlamaGen
from mgpt.tokenizers.magvit2 import OpenMagvit2
from mgpt.tokenizers.movqgan import Movqgan
from mgpt.tokenizers.protocol import PictureTokenizer
from mgpt.tokenizers.vqgan import Vqgan

__all__ = ["TOKENIZERS"]

TOKENIZERS: dict[str, type[PictureTokenizer]] = {
    "vqgan": Vqgan,
    "llamagen": LlamaGen,
    "movqgan": Movqgan,
    "ibq": Ibq,
    "emu3": Emu3,
    "cosmos_dv": CosmosVideo,
    "cosmos_di": CosmosImage,
    "magvit2": OpenMagvit2,
}
