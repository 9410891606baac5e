"""The words around the pictures: which chat template made a prompt, and which of its tokens the user wrote."""

from .by_picture import words_of_pictures
from .instruction import InstructionFinder
from .tokenizer import find_tokenizer, reader

__all__ = ["InstructionFinder", "find_tokenizer", "reader", "words_of_pictures"]
