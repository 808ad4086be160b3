"""Train an embedded model from nothing: tokenizer, curriculum, checkpoint, model card. One command, one seed.

    python -m scripts.train_embedded transformer --out models/embedded/transformer
    python -m scripts.train_embedded mamba --out models/embedded/mamba

A transformer starts with records of random tokens (until they can be looked up); then, as a Mamba does at once, few
short documents with many questions, and longer contexts. A transformer's second round, with the learning rate up once
more, has documents as a search gives them; a Mamba sees such from early on. The loss is on answer tokens alone.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.decoder import Decoder
from models.families import read_config
from models.load import load_decoder
from scripts.embedded_checkpoint import save_checkpoint
from scripts.embedded_episodes import Episode, EpisodeMaker, random_records
from scripts.embedded_exams import examine
from scripts.embedded_initial import initialise
from scripts.embedded_progress import Curve, Progress, relative_cost, schedule, seconds_left_for
from scripts.embedded_recipes import RECIPES, Recipe, Stage
from scripts.embedded_tokenizer import save_tokenizer, train_tokenizer

POSITION_SPAN = 16_384
SAVE_EVERY_S = 300.0


@dataclass(frozen=True, slots=True)
class Batch:
    """token_ids, positions: (b, l) int64. rows: (r,) int64, the answer tokens in the flattened batch; the hidden
    state that predicts each is the one before it.
    """

    token_ids: Tensor
    positions: Tensor
    rows: Tensor


def spread_positions(rng: random.Random, episode: Episode) -> list[int]:
    """Positions with jumps between documents, so that a short sequence shows the model far positions.

    Source of the idea: positional skip-wise training, arXiv:2309.10400.
    """
    length = len(episode.token_ids)
    slack = round(math.exp(rng.uniform(0.0, math.log(POSITION_SPAN)))) if rng.random() < 0.6 else 0
    if not episode.jumps or slack <= length:
        return list(range(length))
    cuts = sorted(rng.randint(0, slack) for _ in episode.jumps)
    starts = dict(zip(episode.jumps, cuts, strict=True))
    positions, offset = [], 0
    for index in range(length):
        offset = starts.get(index, offset)
        positions.append(index + offset)
    return positions


def collate(episodes: list[Episode], rng: random.Random, *, spread: bool, device: torch.device) -> Batch:
    token_ids = torch.tensor([episode.token_ids for episode in episodes])
    mask = torch.tensor([episode.loss for episode in episodes])
    mask[:, 0] = False
    positions = [spread_positions(rng, e) if spread else list(range(len(e.token_ids))) for e in episodes]
    rows = mask.flatten().nonzero().squeeze(-1)
    return Batch(token_ids.to(device), torch.tensor(positions).to(device), rows.to(device))


Forward = Callable[[Tensor, Tensor], Tensor]


def loss_of(decoder: Decoder, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the answer tokens, and how many of them were the likeliest."""
    hidden = forward(batch.token_ids, batch.positions).flatten(0, 1)
    logits, targets = decoder.logits(hidden[batch.rows - 1]), batch.token_ids.flatten()[batch.rows]
    return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()


def optimizers(decoder: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in decoder.named_parameters():
        inside = parameter.dim() == 2 and "embedding" not in name and "head" not in name
        (matrices if inside else others).append(parameter)
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.matrix_learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    optims: list[torch.optim.Optimizer] = [muon, adamw]
    for optim in optims:
        for group in optim.param_groups:
            group["initial_lr"] = group["lr"]
    return optims


def episodes_of(stage: Stage, maker: EpisodeMaker, rng: random.Random, vocab_size: int) -> list[Episode]:
    """One batch of episodes of a stage."""
    episodes = []
    for _ in range(stage.batch):
        if rng.random() < stage.records_share:
            episodes.append(random_records(rng, vocab_size, stage.length, stage.records))
            continue
        # Drawn evenly on a logarithmic scale, so that short contexts are not forgotten; a few have none at all.
        low, high = stage.document_tokens
        tokens = round(math.exp(rng.uniform(math.log(low), math.log(high)))) if rng.random() > 0.04 else 0
        episodes.append(
            maker.episode(
                stage.length,
                tokens,
                stage.two_hop_share,
                focused=rng.random() < stage.focused_share,
                alike=rng.random() < stage.alike_share,
                name_share=stage.name_share,
                label_share=stage.label_share,
            )
        )
    return episodes


def train_step(
    decoder: Decoder,
    forward: Forward,
    optims: list[torch.optim.Optimizer],
    batch: Batch,
    *,
    rate: float,
) -> tuple[float, float]:
    """One update; `rate` is the factor on every learning rate. Returns loss and accuracy on the answers."""
    # Matrix products in bfloat16, weights and optimizer state in float32.
    with torch.autocast(batch.token_ids.device.type, dtype=torch.bfloat16):
        loss, accuracy = loss_of(decoder, forward, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = group["initial_lr"] * rate
        optim.step()
        optim.zero_grad(set_to_none=True)
    return float(loss.detach()), float(accuracy)


def train(
    decoder: Decoder,
    rounds: Sequence[Recipe],
    maker: EpisodeMaker,
    *,
    seed: int,
    scale: float,
    max_seconds: float,
    checkpoint: Callable[[list[dict[str, float]]], None],
    device: torch.device,
    compiled: bool = False,
) -> list[dict[str, float]]:
    """Run the curriculum; returns the loss curve. `checkpoint` is called every few minutes."""
    rng = random.Random(seed)
    # Compiled where it pays; a stage has one shape, so each compiles once.
    forward: Forward = torch.compile(decoder.forward_dense, dynamic=False) if compiled else decoder.forward_dense
    curve = Curve(rounds[0].log_seconds)
    stages = [stage for recipe in rounds for stage in recipe.stages]
    for recipe in rounds:
        share = relative_cost(recipe.stages) / relative_cost(stages)
        train_round(
            decoder,
            forward,
            recipe,
            maker=maker,
            rng=rng,
            curve=curve,
            scale=scale,
            max_seconds=share * max_seconds,
            checkpoint=checkpoint,
            device=device,
        )
    return curve.points


def train_round(
    decoder: Decoder,
    forward: Forward,
    recipe: Recipe,
    *,
    maker: EpisodeMaker,
    rng: random.Random,
    curve: Curve,
    scale: float,
    max_seconds: float,
    checkpoint: Callable[[list[dict[str, float]]], None],
    device: torch.device,
) -> None:
    """One fall of the learning rate, with optimizers of its own."""
    optims = optimizers(decoder, recipe)
    total_tokens = round(scale * sum(stage.tokens for stage in recipe.stages))
    progress = Progress(time.perf_counter(), total_tokens, max_seconds)
    saved_s = time.perf_counter()
    for number, stage in enumerate(recipe.stages):
        curve.begin_stage()
        end = progress.tokens + round(stage.tokens * scale)
        # A stage ends with its tokens, or with its share of the time if the machine is slower than the recipe.
        end_s = progress.elapsed + seconds_left_for(recipe.stages[number:], max_seconds - progress.elapsed)
        while progress.tokens < end and progress.elapsed < end_s and not curve.reaches(stage.until):
            episodes = episodes_of(stage, maker, rng, decoder.config.vocab_size)
            batch = collate(episodes, rng, spread=stage.spread, device=device)
            loss, accuracy = train_step(decoder, forward, optims, batch, rate=schedule(progress.fraction))
            progress.tokens += batch.token_ids.numel()
            curve.add(loss, accuracy, batch.token_ids.numel())
            if time.perf_counter() - saved_s > SAVE_EVERY_S:
                checkpoint(curve.points)
                saved_s = time.perf_counter()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an embedded model.")
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every stage's tokens")
    parser.add_argument("--max-minutes", type=float, default=600.0, help="shorten the curriculum to fit this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the forward pass (needs a C++ compiler)")
    parser.add_argument("--continue-from", type=Path, help="go on from this checkpoint with the second round alone")
    return parser.parse_args()


def begin(arguments: argparse.Namespace, recipe: Recipe) -> tuple[Decoder, Tokenizer]:
    """The model to train and its tokenizer, written to the directory with the config: new ones, or a checkpoint's."""
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "config.json").write_text(json.dumps(recipe.config, indent=2) + "\n", encoding="utf-8")
    if arguments.continue_from:
        tokenizer = Tokenizer.from_file(str(arguments.continue_from / "tokenizer.json"))
        decoder = load_decoder(arguments.continue_from, dtype=torch.float32, device=device).requires_grad_(True)
    else:
        tokenizer = train_tokenizer(recipe.vocab_size, seed=10_000)
        decoder = Decoder(read_config(arguments.out))
        initialise(decoder, arguments.seed, tokenizer)
        decoder = decoder.to(device)
    save_tokenizer(tokenizer, arguments.out)
    return decoder, tokenizer


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.model]
    rounds = recipe.rounds()[1:] if arguments.continue_from else recipe.rounds()
    if not rounds:
        raise SystemExit(f"{arguments.model}: the recipe has no second round to go on with")
    decoder, tokenizer = begin(arguments, recipe)
    run = {
        "model": arguments.model,
        "seed": arguments.seed,
        "scale": arguments.scale,
        "max_minutes": arguments.max_minutes,
        "threads": arguments.threads,
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "compiled": arguments.compile,
        "continued": bool(arguments.continue_from),
        "recipe": asdict(recipe),
    }
    if arguments.continue_from:
        # How the first round went stays on record.
        record = json.loads((arguments.continue_from / "training.json").read_text(encoding="utf-8"))
        run["before"] = {key: record[key] for key in ("run", "seconds", "hardware", "torch", "curve")}
    print(json.dumps({key: run[key] for key in ("model", "parameters", "seed")}), flush=True)
    started = time.perf_counter()

    def checkpoint(curve: list[dict[str, float]], *, final: bool = False) -> None:
        seconds = time.perf_counter() - started
        if final:
            save_checkpoint(decoder, arguments.out, run=run, curve=curve, scores={}, seconds=seconds)
        # On the way only a glance: the whole examination costs minutes on a CPU.
        lengths = recipe.exam_lengths if final else recipe.exam_lengths[:1]
        scores = examine(decoder, tokenizer, lengths, num_questions=recipe.exam_questions if final else 20)
        print(json.dumps(scores), flush=True)
        save_checkpoint(decoder, arguments.out, run=run, curve=curve, scores=scores, seconds=seconds)

    # A second round must not see the first one's worlds again.
    worlds = random.Random(arguments.seed + 2 * bool(arguments.continue_from))
    curve = train(
        decoder,
        rounds,
        EpisodeMaker(worlds, tokenizer),
        seed=arguments.seed + 1,
        scale=arguments.scale,
        max_seconds=arguments.max_minutes * 60,
        checkpoint=checkpoint,
        device=torch.device(arguments.device),
        compiled=arguments.compile,
    )
    checkpoint(curve, final=True)


if __name__ == "__main__":
    main()
