"""The README.md of a trained head: what it is, what it learned from, how well it drafts."""

from head_training.training import Training

CARD = """\
# EAGLE-3 head for {base}

{parameters:,} parameters in bfloat16, {size:,} bytes; draft vocabulary of {vocabulary} of {base_vocabulary} tokens,
which {coverage:.1%} of the answers' tokens are in. Layout of SafeAILab/EAGLE, trained by `tools/train_head.py`.

## Data

{train} answers of the base, greedy, {tokens:,} tokens; {held_out} more, held out by a hash of the prompt.

## Training

{beginning}{steps} steps of {batch} answers ({passes:.1f} passes), {unroll} steps of the head per pair, of which
the later ones are fed its own output ({rows} pairs of each answer). Loss: {hard:.0%} on the base's first choice, the
rest on its distribution over the draft vocabulary; Muon for the matrices, AdamW for norms and lm_head, half a cosine.
Processor time in minutes: {minutes}.

| step | training loss | held-out loss, by position | right, by position | length of a chain |
|---|---|---|---|---|
{table}

*Right, by position*: of held-out drafts whose ancestors were all right, the share that is the base's own choice too.
*Length of a chain*: tokens per verification with one draft per depth, without a tree; a tree accepts more.
"""

FROM = """\
It goes on from a head that was there, at {rate:g} of the learning rates of a new one, and keeps the tokens that it
could draft; data, steps and minutes are those of this training alone.
"""


def model_card(training: Training, base: str, minutes: dict[str, float], size: int) -> str:
    """Return the card of a head that has been trained; every figure was measured by this run."""
    settings, config = training.settings, training.config
    lines = []
    for measure in training.measures:
        loss = "" if measure["training_loss"] is None else f"{measure['training_loss']:.3f}"
        losses = ", ".join(f"{value:.2f}" for value in measure["losses"])
        rates = ", ".join(f"{value:.2f}" for value in measure["rates"])
        lines.append(f"| {measure['step']} | {loss} | {losses} | {rates} | {measure['chain']:.2f} |")
    return CARD.format(
        base=base,
        beginning="" if training.beginning is None else FROM.format(rate=settings.rate),
        parameters=sum(p.numel() for p in training.head.parameters()),
        size=size,
        vocabulary=config["draft_vocab_size"],
        base_vocabulary=config["vocab_size"],
        coverage=training.coverage,
        train=len(training.train),
        tokens=sum(len(row.tokens) - row.start for row in training.train),
        held_out=len(training.held_out),
        steps=training.step,
        batch=settings.batch,
        passes=training.step * settings.batch / len(training.train),
        unroll=settings.unroll,
        rows=settings.self_fed_rows,
        hard=settings.hard_share,
        minutes=", ".join(f"{stage} {value:.1f}" for stage, value in sorted(minutes.items())),
        table="\n".join(lines),
    )
