"""Answers of made-up models that learnt from nobody, or from one of them."""

import random

PROMPTS = 48
WORDS = [f"w{n}" for n in range(400)]


def answers(model, seed=0, prompts=PROMPTS, of=None, share=0.0):
    """What a model says: words of its own liking, or for a `share` of its words what `of` says there."""
    taste = random.Random(f"{model}-{seed}")
    liked = taste.sample(WORDS, 150)
    texts = []
    for prompt in range(prompts):
        say = random.Random(f"{model}-{seed}-{prompt}")
        told = [f"p{prompt}x{say.randrange(12)}" for _ in range(12)]
        said = [say.choice(liked) for _ in range(20)] + told
        if of is not None:
            theirs = of[prompt].split()
            said = [theirs[at] if say.random() < share else word for at, word in enumerate(said)]
        texts.append(" ".join(said))
    return texts


def crowd(count, seed=0):
    return {f"m{n}": answers(f"m{n}", seed) for n in range(count)}
