"""Unlabelled text of the desk's world, for pre-training a base student.

Mails, order notes, calendar facts, price lists, shelf lists, waiting lists, handbook sentences, and
questions that nobody answered. It teaches the words, the order of numbers and the habit of repeating a name
or an id, and it holds no question with its answer, no worked sum and no JSON. Slot values are those of the
training split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from stillhouse.models.embedded.world import phrases, slots
from stillhouse.models.embedded.world.families import FAMILIES, mail_of
from stillhouse.models.embedded.world.slots import MONTHS

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()

HANDBOOK = (
    "The desk answers every mail within a day, and a letter within a week.",
    "A ticket is a line on the board: its id, and the hours that it waits.",
    "A sealed box was never opened; unopened goods are as new.",
    "Opened goods are goods whose box is open, or whose seal is no longer whole.",
    "A voucher can be used for any item of the shop.",
    "A refund goes back to the card that was charged.",
    "The customer is told the decision in a short and friendly reply.",
    "Prices are per piece: what one costs, each or apiece.",
    "The fee for the post is on the bill below the goods.",
    "The smallest number is the lowest, and the largest is the highest.",
    "From small to large means the low end first; from large to small means the high end on top.",
    "The longest wait is the ticket with the most hours, the shortest the one with the fewest.",
    "Rules have limits: what comes after the limit is late, what comes before is in time.",
    "A calendar names the day and the month; when a month ends the next one begins with day 1.",
    "Money back is a refund, and something else of the same worth is a voucher.",
    "The policy of the shop is on the wall: terms, limits and what applies to whom.",
    "A queue is a list of mails that one team reads.",
    "Please be polite: say that we are sorry, and what we can offer.",
    "The whole order together is the basket; the sum of all is the amount that is due.",
    "Parcels leave in the morning, and the courier scans them on the road.",
    "The sale opens in spring and closes in autumn.",
    "What is lent comes back; what is sold stays away.",
    "The inbox is read from the top, one mail after the next.",
    "A box that is sealed as new and not yet opened may come back; one opened once may not.",
    "Goods opened by now, or opened before, are open; goods that are fully sealed are not open.",
    "A kettle as well as a clock, together with a lamp & a fan, may be in one order.",
    "Goods have a price: they are priced, sold at a price, sold for less, or cost more.",
    "What was posted in May, in the hours of the night, with care, is on the list.",
)


def mail(rng: Random) -> str:
    """What a customer might write, as it stands in the inbox."""
    values = {
        "name": slots.person(rng, "train"),
        "order": slots.order_id(rng, "train"),
        "item": slots.item(rng, "train"),
        "city": slots.city(rng, "train"),
    }
    _, text = mail_of(rng, "train", values)
    return f'{text} The mail was signed "{values["name"]}".' if rng.random() < 0.3 else text


def complaint(rng: Random) -> str:
    """A message with its matters, and with further words of the same team."""
    queue = rng.choice(tuple(phrases.QUEUES))
    first, second = rng.sample(range(len(phrases.QUEUES[queue].complaints)), 2)
    text = phrases.trouble(rng, "train", queue, first)
    if rng.random() < 0.5:
        text += f", and {phrases.trouble(rng, 'train', queue, second)}"
    one, another = rng.sample(phrases.QUEUES[queue].matters, 2)
    end = rng.choice(
        ("", f" It is about the {one} and the {another}.", f" A word on the {one} would help me.")
    )
    return f"{text[0].upper()}{text[1:]}.{end} {slots.person(rng, 'train')}"


def order_note(rng: Random) -> str:
    """One order, one customer, one product, each named more than once."""
    order, person, item = slots.order_id(rng, "train"), slots.person(rng, "train"), slots.item(rng, "train")
    city, count = slots.city(rng, "train"), rng.randint(2, 9)
    return rng.choice(
        (
            f"The name is {person}, the city is {city}. Sent to {city}: a {item}, for {person}.",
            f"On file: order {order}, item {item}. The item of order {order} is a {item}.",
            f"Order {order} is for {person} in {city}. {person} bought a {item}. The {item} left for {city}.",
            f"{person} called about order {order}. We found {order} on the shelf. {person} was glad.",
            f"Packed for {person}: {count} {item}s. Order {order}, {count} pieces, {city}."
            f" {order} is closed.",
            f"The {item} of {person} is back from {city}. The {item} goes to shelf {order}."
            f" Note for {person}: {order}.",
            f"{order}: {item}. {order}: {person}. {order}: {city}.",
            f'In the file of "{person}" there is order "{order}" with a "{item}" to "{city}".'
            f" {person}, {order}.",
        )
    )


def price_list(rng: Random) -> str:
    lines = []
    for _ in range(rng.randint(2, 4)):
        price, item = rng.randint(11, 49), slots.item(rng, "train")
        lines.append(
            rng.choice(
                (
                    f"{item}s at {price} each",
                    f"{item}s for {price} apiece",
                    f"{item} ({price} each)",
                    f"{item}s priced {price}, that is {price} per piece",
                    f"{item}s that cost {price}",
                )
            )
        )
    return rng.choice(("In the shop: ", "New prices: ", "We have ", "Sold today: ")) + ", ".join(lines) + "."


def calendar(rng: Random) -> str:
    """A fact about months and days."""
    index = rng.randrange(12)
    (month, length), (following, _) = MONTHS[index], MONTHS[(index + 1) % 12]
    day = rng.randint(1, length - 1)
    return rng.choice(
        (
            f"{month} has {length} days.",
            f"{month} has {length} days, and {following} comes after {month}.",
            f"After {length} {month} comes 1 {following}.",
            f"The day after {day} {month} is {day + 1} {month}.",
            f"{following} follows {month}. {month} ends on {length} {month}.",
            f"The parcel was packed on {day} {month} and left on {day + 1} {month}.",
        )
    )


def counting(rng: Random) -> str:
    """Numbers in their order, in digits or in words."""
    start, step = rng.randint(0, 150), rng.choice((1, 1, 1, 10))
    if rng.random() < 0.2:
        low = rng.randint(0, 8)
        return "Counted: " + ", ".join(NUMBER_WORDS[low : low + 5]) + "."
    if rng.random() < 0.4:
        falling = rng.random() < 0.5
        mixed = sorted(rng.sample(range(1, rng.choice((10, 100))), rng.randint(3, 6)), reverse=falling)
        return ("Falling: " if falling else "Rising: ") + ", ".join(map(str, mixed)) + "."
    numbers = [start + step * place for place in range(rng.randint(4, 8))]
    if rng.random() < 0.3:
        numbers.reverse()
    return rng.choice(("Shelves ", "Pages ", "Boxes ")) + ", ".join(map(str, numbers)) + "."


def waiting(rng: Random) -> str:
    """Two numbers and which of them is the larger one."""
    low, high = sorted(rng.sample(range(1, rng.choice((10, 100))), 2))
    first, second = slots.order_id(rng, "train"), slots.order_id(rng, "train")
    return rng.choice(
        (
            f"Ticket {first} waits {high} hours, ticket {second} only {low}; {first} has waited longest.",
            f"{low} is less than {high}. {high} is more than {low}.",
            f"{high} days is over {low} days, and {low} days is within {high} days.",
            f"{low} comes before {high}, so shelf {low} is lower than shelf {high}.",
            f"On the board: {low} {second}, {high} {first}. The shortest is {low}, the longest is {high}.",
            _boards(rng),
            _boards(rng),
        )
    )


def _boards(rng: Random) -> str:
    """One list twice, the second time shuffled: no order in it, only the same lines again."""
    hours = rng.sample(range(1, 10), rng.randint(2, 4))
    lines = [f"{waited} {slots.order_id(rng, 'train')}" for waited in hours]
    again = rng.sample(lines, len(lines))
    joint = rng.choice((", ", "; ", " and "))
    return f"Board at noon: {joint.join(lines)}. Board at night: {', '.join(again)}."


def handbook(rng: Random) -> str:
    return " ".join(rng.sample(HANDBOOK, 2))


def case_note(rng: Random) -> str:
    """What was wrong with a product and what somebody got for it."""
    person, item = slots.person(rng, "train"), slots.item(rng, "train")
    fault, remedy = rng.choice(phrases.FAULTS), rng.choice(phrases.REMEDIES)
    return rng.choice(
        (
            f"{person} has a {item}. The {item} {fault}. {person} got {remedy}.",
            f"We sent {remedy} to {person}, because the {item} {fault}.",
            f"The {item} {fault}, says {person}. Note: {remedy} for {person}.",
        )
    )


def question(rng: Random) -> str:
    """A question of the training split as it comes in, without its answer."""
    build = rng.choice(tuple(FAMILIES.values()))[0]
    return build(rng, "train").question


SOURCES: tuple[tuple[Callable[[Random], str], int], ...] = (
    (mail, 4),
    (complaint, 3),
    (order_note, 5),
    (price_list, 2),
    (calendar, 2),
    (counting, 2),
    (waiting, 3),
    (handbook, 1),
    (case_note, 2),
    (question, 5),
)


def text(seed: int) -> Iterator[str]:
    """Unlabelled passages without end, one to four sentences each."""
    rng = Random(f"text/{seed}")
    sources = [source for source, _ in SOURCES]
    weights = [weight for _, weight in SOURCES]
    while True:
        yield rng.choices(sources, weights)[0](rng)
