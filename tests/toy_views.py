"""Images in two views and a network small enough for exact comparisons of contrastive training."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.engine.contrastive import SimCLR
from tutelage.engine.loop import accumulate
from tutelage.engine.runtime import Runtime
from tutelage.types import Batch

SIDE = 16


class ToyEmbedder(nn.Module):
    """Colors of a coarse grid, two layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.Linear(48, 24)
        self.norm = nn.BatchNorm1d(24)
        self.out = nn.Linear(24, width)

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        grid = F.adaptive_avg_pool2d(images.to(self.out.weight.dtype) / 128 - 1, 4).flatten(1)
        return self.out(F.relu(self.norm(self.hidden(grid))))


def toy_embedder(seed: int = 0) -> ToyEmbedder:
    torch.manual_seed(seed)
    return ToyEmbedder()


def views(seed: int, size: int) -> Batch:
    """Random images of coarse cells; the second view is a noisy copy of the first."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 200, (size, 1, 3, 4, 4), generator=generator)
    noise = torch.randint(0, 50, (size, 2, 3, SIDE, SIDE), generator=generator)
    images = cells.repeat_interleave(4, -1).repeat_interleave(4, -2) + noise
    return Batch(
        images=images.to(torch.uint8),
        matrix=torch.eye(3, dtype=torch.float64).expand(size, 2, 3, 3),
        valid=torch.full((size, 2, 2), SIDE),
        image_ids=torch.arange(size),
        sizes=torch.full((size, 2), SIDE),
    )


def part_of(batch: Batch, part: int, parts: int) -> Batch:
    """An equal share of a batch."""
    return Batch(
        *(getattr(batch, name).chunk(parts)[part] for name in ("images", "matrix", "valid", "image_ids", "sizes"))
    )


def view_stream(
    index: object,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    num_steps: int,
    rank: int,
    world_size: int,
    **_: object,
) -> Iterator[list[Batch]]:
    """In the place of `view_batches`."""
    for step in range(first_step, num_steps):
        yield [part_of(views(seed + 1000 * step, batch_size), rank, world_size)]


def contrastive_step(runtime: Runtime) -> dict[str, Tensor]:
    """Gradients and figures of one step of 8 images on all devices together, in double precision."""
    objective = SimCLR(toy_embedder().double().eval(), temperature=0.2)
    wrapped = runtime.setup(objective)
    mine = part_of(views(1, 8), runtime.rank, runtime.world_size)
    sums, counts = accumulate(wrapped, objective, [{"images": mine}], None, runtime)
    gradients = {name: weight.grad for name, weight in objective.model.named_parameters() if weight.grad is not None}
    return {**gradients, **objective.report(sums, counts)}
