"""Two outputs of ``runtime run --json``, with the draft and without, as a table."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The figures of one run; lengths count accepted draft tokens of each step."""

    tokens: list[int]
    accept_lengths: list[int]
    load_s: float
    prefill_s: float
    decode_s: float
    tokens_per_s: float

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens of one step: the accepted ones and the one that verification adds."""
        return 1 + sum(self.accept_lengths) / len(self.accept_lengths) if self.accept_lengths else 1.0


def read(file: Path) -> Run:
    data = json.loads(file.read_text())
    return Run(**{name: data[name] for name in Run.__slots__})


def table(draft: Run, plain: Run) -> Table:
    rows = Table("", "with draft", "without", "ratio")
    for column in rows.columns[1:]:
        column.justify = "right"
    rows.add_row("tokens", f"{len(draft.tokens)}", f"{len(plain.tokens)}", "")
    rows.add_row("load, s", f"{draft.load_s:.2f}", f"{plain.load_s:.2f}", "")
    rows.add_row("prefill, s", f"{draft.prefill_s:.3f}", f"{plain.prefill_s:.3f}", "")
    rows.add_row("decode, s", f"{draft.decode_s:.2f}", f"{plain.decode_s:.2f}", "")
    speedup = draft.tokens_per_s / plain.tokens_per_s
    rows.add_row("tokens/s", f"{draft.tokens_per_s:.1f}", f"{plain.tokens_per_s:.1f}", f"{speedup:.2f}")
    rows.add_row("mean acceptance length", f"{draft.mean_acceptance_length:.2f}", "1.00", "")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("draft", type=Path, help="with the draft")
    parser.add_argument("plain", type=Path, help="the same with --no-draft")
    arguments = parser.parse_args()
    draft, plain = read(arguments.draft), read(arguments.plain)
    console = Console()
    console.print(table(draft, plain))
    same = draft.tokens == plain.tokens
    console.print("The tokens are the same." if same else "The tokens differ: nearly equal logits, in another order of sums.")


if __name__ == "__main__":
    main()
