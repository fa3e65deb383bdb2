"""PairScorer: the logits of many pairs, faster than the plain model and in bounded memory.

What it saves against RerankingTransformer.forward on padded pairs: tokens that are only padding,
the last layer for all tokens but CLS, the [tokens, tokens] attention matrix, and what an image
gives alike to all of its pairs. In float32 nothing is approximated. How: pair_encoder.py (CPU) and
batch_encoder.py (GPU).
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import numpy as np
import torch

from rrt_core.devices import choose_device
from rrt_core.options import check_choice
from rrt_core.transformer.batch_encoder import BatchEncoder, assemble
from rrt_core.transformer.model import RerankingTransformer
from rrt_core.transformer.pair_encoder import PairEncoder, Side
from schemas.errors import UserError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Images whose first work is kept by a worker: a side of 502 tokens is 1.3 MB.
SIDES_KEPT = 8

# Batches under way on a GPU before the first of them is waited for.
BATCHES_AHEAD = 3


@dataclass(frozen=True)
class TokenSet:
    """One image as the model takes it.

    global_descriptor: float32 [global_dim]. local: float32 [n, d_model], n >= 0.
    scale_rows: int64 [n], rows of the scale embedding, 0..6 (transformer.bin_scales).
    """

    global_descriptor: np.ndarray
    local: np.ndarray
    scale_rows: np.ndarray


class PairScorer:
    """Scores (query, gallery) pairs with one model, taken as it is when the scorer is made.

    On the CPU pairs are scored one by one: a pair fills the vector units already, and sums inside a
    matrix product run in another order when a batch has another size. A pair's logit then has the
    same bits whatever company it is scored in, and with several workers whatever their number. On a
    GPU, or where batch_tokens is given, pairs are sorted by length and scored in batches; a logit
    may then differ by rounding (below 1e-5 in float32).

    device: torch.device that was chosen.
    """

    def __init__(
        self,
        model: RerankingTransformer,
        device: str = "auto",
        batch_tokens: int | None = None,
        precision: str = "float32",
        workers: int | None = None,
    ) -> None:
        """Copy the model to the device and prepare its weights.

        Args:
            device: see choose_device.
            batch_tokens: most tokens in a batch, padding counted, which bounds the memory (about 10
                kB a token in float32); at least one pair is taken. None: pair by pair on the CPU,
                131,072 tokens elsewhere.
            precision: float32; bfloat16 or float16 for the layers' matrix products and attention,
                with norms, sums, softmax and the last layer in float32. bfloat16 works on every
                processor, but is no quicker than float32 on one without AVX-512. float16 needs a
                GPU.
            workers: threads that score a pair each, on one core each, on the CPU; 1: no thread is
                made, and the pair has the torch threads of the caller. None: as many as the caller
                has torch threads (torch.get_num_threads). No setting of the caller's is changed.

        Raises:
            UserError: an option of another value.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens must be at least 1, not {batch_tokens}.")
        if workers is not None and workers < 1:
            raise UserError(f"workers must be at least 1, not {workers}.")
        check_choice("precision", precision, PRECISIONS)
        self.device = choose_device(device)
        if precision == "float16" and self.device.type == "cpu":
            raise UserError(
                "precision float16 needs a GPU, and the device is the CPU: choose bfloat16 or "
                "float32."
            )
        self.config, self.precision, self.workers = model.config, precision, workers
        self.batch_tokens = batch_tokens or 131_072
        own = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        pairwise = self.device.type == "cpu" and batch_tokens is None
        self._encoder = (PairEncoder if pairwise else BatchEncoder)(own, PRECISIONS[precision])

    def __str__(self) -> str:
        """The device and precision in words."""
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        return f"{self.device}{name}, {self.precision}"

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[TokenSet, TokenSet]]) -> np.ndarray:
        """Logits, float32 [len(pairs)], in the order of `pairs`.

        An image's own work is done once where the pairs of one TokenSet stand together.

        Raises:
            UserError: descriptors of another width than the model's.
        """
        for query, gallery in pairs:
            self._check(query)
            self._check(gallery)
        logits = np.empty(len(pairs), np.float32)
        if isinstance(self._encoder, BatchEncoder):
            self._score_batches(self._encoder, pairs, logits)
        else:
            self._score_pairs(self._encoder, pairs, logits)
        return logits

    def _check(self, image: TokenSet) -> None:
        for kind, width, wanted in (
            ("global", image.global_descriptor.shape[-1], self.config.global_dim),
            ("local", image.local.shape[-1], self.config.d_model),
        ):
            if width != wanted and (kind == "global" or len(image.local)):
                raise UserError(
                    f"The reranker's weights are made for {kind} descriptors of {wanted} "
                    f"dimensions, but the store's have {width}: use weights that were trained on "
                    "this extractor's descriptors."
                )

    def _score_pairs(
        self, encoder: PairEncoder, pairs: Sequence[tuple[TokenSet, TokenSet]], logits: np.ndarray
    ) -> None:
        threads = torch.get_num_threads()
        workers = min(self.workers or threads, len(pairs))
        waiting = deque(range(len(pairs)))

        def work() -> None:
            # What is kept is the worker's own: no locks, and pairs of one query are taken one after
            # another.
            kept: OrderedDict[tuple[int, bool], Side] = OrderedDict()

            def side(image: TokenSet, gallery: bool) -> Side:
                key = (id(image), gallery)
                if key in kept:
                    kept.move_to_end(key)
                else:
                    kept[key] = encoder.side(
                        image.global_descriptor, image.local, image.scale_rows, gallery
                    )
                    if len(kept) > SIDES_KEPT:
                        kept.popitem(last=False)
                return kept[key]

            while waiting:
                try:
                    i = waiting.popleft()
                except IndexError:  # another worker was quicker
                    return
                logits[i] = encoder.logit(side(pairs[i][0], False), side(pairs[i][1], True))

        if workers <= 1 and (threads == 1 or self.workers == 1):
            work()
            return
        all_started = Barrier(workers + 1)

        def work_alone() -> None:
            torch.set_num_threads(1)
            all_started.wait()
            with torch.inference_mode():
                work()

        with ThreadPoolExecutor(workers) as pool:
            running = [pool.submit(work_alone) for _ in range(workers)]
            all_started.wait()
            # torch's setting is a thread's own, but it is also what threads made later begin with.
            torch.set_num_threads(threads)
            for future in running:
                future.result()

    def _score_batches(
        self, encoder: BatchEncoder, pairs: Sequence[tuple[TokenSet, TokenSet]], logits: np.ndarray
    ) -> None:
        on_cuda = self.device.type == "cuda"
        pending: deque[tuple[list[int], torch.Tensor]] = deque()

        def finish() -> None:
            batch, scores = pending.popleft()
            logits[batch] = scores.cpu().numpy()

        images = {id(image): image for pair in pairs for image in pair}
        arrays = {
            key: (image.global_descriptor, image.local, image.scale_rows)
            for key, image in images.items()
        }
        for batch in self._batches(pairs):
            chosen = [(arrays[id(pairs[i][0])], arrays[id(pairs[i][1])]) for i in batch]
            assembled = assemble(chosen, self.config.d_model, pin=on_cuda)
            pending.append((batch, encoder.logits(encoder.to_device(assembled))))
            # The host assembles and copies ahead of the GPU, but not so far that memory would grow.
            if len(pending) >= (BATCHES_AHEAD if on_cuda else 1):
                finish()

        while pending:
            finish()

    def _batches(self, pairs: Sequence[tuple[TokenSet, TokenSet]]) -> Iterator[list[int]]:
        """Positions of pairs in batches sorted by length.

        A batch has at most batch_tokens tokens, with their padding.
        """
        lengths = [4 + len(query.local) + len(gallery.local) for query, gallery in pairs]
        batch: list[int] = []
        for i in sorted(range(len(pairs)), key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[i] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch
