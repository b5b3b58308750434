"""A prompt as token ids and as what a visitor is shown of it. No torch."""

from __future__ import annotations

from pathlib import Path

from pipelines.common.errors import UserError

from .config import CLIPTextConfig
from .contract import PromptTokens
from .tokenizer import END, START, CLIPTokenizer


def load_tokenizer(folder: Path, cfg: CLIPTextConfig) -> CLIPTokenizer:
    """From a folder with vocab.json and merges.txt. cfg: of the encoder that gets the ids.

    UserError: a file is missing or damaged, or is of another model.
    """
    try:
        tokenizer = CLIPTokenizer.read(folder)
        if (
            not 2 < tokenizer.max_length <= cfg.max_position_embeddings
            or max(tokenizer.vocab.values()) >= cfg.vocab_size
        ):
            raise UserError("The tokenizer and the text encoder are of different models: fetch these weights again.")
        return tokenizer
    except OSError as error:
        name = Path(str(error.filename or "vocab.json")).name
        raise UserError(f"The model folder has no tokenizer/{name}: fetch these weights again.") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError("The tokenizer of the model folder is damaged: fetch these weights again.") from error


def read(tokenizer: CLIPTokenizer, prompt: str) -> tuple[PromptTokens, tuple[int, ...]]:
    """The words' pieces with how many of them fit, and the ids that the text encoder gets: start, the pieces that fit,
    end, padding up to the encoder's length. The ids are those of `CLIPTokenizer.encode`."""
    tokens = tokenizer.tokens(prompt)
    used = min(len(tokens), tokenizer.max_length - 2)
    start, end = tokenizer.vocab[START], tokenizer.vocab[END]
    ids = [start, *(token.id for token in tokens[:used]), end]
    padded = (*ids, *[tokenizer.pad_id] * (tokenizer.max_length - len(ids)))
    return PromptTokens(tuple(token.text for token in tokens), used), padded
