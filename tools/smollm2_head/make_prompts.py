"""Write chat prompts of several kinds for training an EAGLE head: templates filled with topics, in a fixed order.

python tools/smollm2_head/make_prompts.py COUNT > prompts.jsonl
"""

import argparse
import json
import random
import sys
from pathlib import Path

import yaml

TEMPLATES: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("templates.yaml").read_text())
ALIASES = {"other": "topic", "who2": "who"}
"""Names in templates that stand for a second entry of another name's list."""
NAMES = sorted((TEMPLATES.keys() | ALIASES.keys()) - {"general", "others", "question", "follow_up", "system"})
"""Names in templates, each filled from the list of its name."""
GENERAL_SHARE, QUESTION_SHARE = 0.35, 0.18
EARLIER_TURN_SHARE, FOLLOW_UP_SHARE, SYSTEM_SHARE = 0.06, 0.6, 0.06


def fill(template: str, rng: random.Random) -> str:
    """Return a template with a random entry for each of its names."""
    numbers = {"n": rng.randrange(2, 60), "m": rng.randrange(60, 400), "k": rng.randrange(2, 12)}
    entries = {name: rng.choice(TEMPLATES[ALIASES.get(name, name)]) for name in NAMES}
    return template.format(**numbers, **entries)


def question(rng: random.Random) -> str:
    """Return a question as it stands in the list, or a filled template of a topic or of another kind."""
    kind = rng.random()
    if kind < QUESTION_SHARE:
        return rng.choice(TEMPLATES["question"])
    return fill(rng.choice(TEMPLATES["general" if kind < QUESTION_SHARE + GENERAL_SHARE else "others"]), rng)


def conversation(rng: random.Random) -> list[dict[str, str]]:
    """Return the messages of one prompt: mostly one question, sometimes a system message or an earlier turn."""
    last = {"role": "user", "content": question(rng)}
    messages = [last]
    if rng.random() < EARLIER_TURN_SHARE:
        topic = rng.choice(TEMPLATES["topic"])
        first = {"role": "user", "content": fill(rng.choice(TEMPLATES["general"]), rng)}
        answer = {"role": "assistant", "content": f"That is a good question. There is a lot to say about {topic}."}
        follow_up = rng.choice(TEMPLATES["follow_up"]) if rng.random() < FOLLOW_UP_SHARE else last["content"]
        messages = [first, answer, {"role": "user", "content": follow_up}]
    if rng.random() < SYSTEM_SHARE:
        messages.insert(0, {"role": "system", "content": rng.choice(TEMPLATES["system"])})
    return messages


def prompts(count: int) -> list[list[dict[str, str]]]:
    """Return different conversations; the first ones of a larger count are those of a smaller."""
    rng = random.Random(15)
    seen: dict[str, list[dict[str, str]]] = {}
    while len(seen) < count:
        messages = conversation(rng)
        seen.setdefault(json.dumps(messages), messages)
    return list(seen.values())


def main() -> None:
    """Print the prompts as JSONL."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", type=int)
    for messages in prompts(parser.parse_args().count):
        sys.stdout.write(json.dumps({"messages": messages}) + "\n")


if __name__ == "__main__":
    main()
