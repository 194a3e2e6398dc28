"""How the desk's questions are worded.

A question is a head, a core and a tail. The core carries the facts and is an arrangement: one phrase of each
of two or more lists. Every arrangement belongs to one split (by a hash of its numbers), so the held-out
splits consist of wordings that no training question has, made of phrases that training does have; heads and
tails are greetings and closing questions, drawn freely.
"""

from __future__ import annotations

from random import Random

from stillhouse.models.embedded.world.slots import Split, split_of


def arrangement(
    rng: Random, split: Split, family: str, *lists: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """A template of the split: its name, such as `dates/3-7`, and one phrase of each list."""
    while True:
        places = [rng.randrange(len(phrases)) for phrases in lists]
        name = f"{family}/{'-'.join(map(str, places))}"
        if split_of(name) == split:
            return name, tuple(phrases[place] for phrases, place in zip(lists, places, strict=True))


def joined(*phrases: str) -> str:
    """The phrases as one text; an empty one leaves no stray blank."""
    return " ".join(phrase for phrase in phrases if phrase)


# ---------------------------------------------------------------- extract: four clauses in any order

MAIL_HEADS = (
    "A mail came in.",
    "Read this mail.",
    "Message from a customer:",
    "Here is a note from the inbox.",
    "Customer writes:",
    "New mail:",
    "",
    "Mail for the desk:",
    "From the inbox:",
)
WHO = (
    "My name is {name}.",
    "I am {name}.",
    "This is {name}.",
    "{name} here.",
    "{name} writes to you.",
    "Yours, {name}.",
    "Regards, {name}.",
    "It is for {name}.",
    "The customer is {name}.",
    "Signed by {name}.",
)
WHERE = (
    "I live in {city}.",
    "Send it to {city}, please.",
    "The address is in {city}.",
    "It should go to {city}.",
    "I write from {city}.",
    "Deliver to {city}.",
    "My home is {city}.",
    "The shop in {city} knows of it.",
    "We are in {city}.",
)
WHICH = (
    "The order is {order}.",
    "It is order {order}.",
    "I have the number {order}.",
    "See order {order}.",
    "{order} is my order.",
    "It is about order {order}.",
    "My receipt says {order}.",
    "Look at {order}.",
    "Order {order} was mine.",
)
WHAT = (
    "The {item} has not come yet.",
    "I bought a {item}.",
    "My {item} is broken.",
    "Where is my {item}?",
    "I need a {item}.",
    "A {item} was sent by mistake.",
    "I want to return the {item}.",
    "The {item} is late.",
    "Thank you for the {item}.",
)
FIELDS = (
    "Give {fields} as JSON.",
    "Write JSON with {fields}.",
    "Return {fields} in JSON.",
    "I need {fields}, as a JSON object.",
    "JSON please: {fields}.",
    "Fill a JSON object with {fields}.",
    "Extract {fields} to JSON.",
    "Only {fields}, in JSON.",
    "Show {fields} as a JSON object.",
)

# ---------------------------------------------------------------- route

ROUTE_HEADS = (
    "Which queue takes this message?",
    "Route this mail.",
    "Name the queue for this mail.",
    "Where should this message go?",
    "Pick a queue.",
    "Sort this into a queue:",
    "Choose the queue.",
    "Which team reads this?",
)
FRAMES = (
    "Hello, {trouble}. Thanks, {name}",
    "Dear desk, {trouble}. {name}",
    "Order {order}: {trouble}.",
    "I am not writing about the {other}; {trouble}.",
    "The {other} is fine, but {trouble}.",
    "My {item} is here. Still, {trouble}.",
    "My name is {name}. I think that {trouble}.",
    "Hi, about the {item}: {trouble}.",
    "I know about the {other}, it is done. But {trouble}.",
    "{name} says that {trouble}.",
    "We talked about the {other} last week. Now {trouble}.",
    "Sorry to ask again: {trouble}.",
)
ROUTE_TAILS = ("", "Queue?", "One word.", "Only the queue, please.", "Name it.")

# ---------------------------------------------------------------- reply

REPLY_HEADS = (
    "Write a short reply.",
    "Answer this customer.",
    "Draft a reply.",
    "Reply to a customer.",
    "Write back.",
    "A customer needs an answer.",
    "Write a mail.",
    "Answer for the desk.",
)
TROUBLES = (
    "{name} says the {item} {fault}.",
    "Customer: {name}. The {item} {fault}.",
    "{name} is angry: the {item} {fault}.",
    "The {item} of {name} {fault}.",
    "{name} wrote that the {item} {fault}.",
    "Mail by {name}: the {item} {fault}.",
    "{name} bought a {item} that {fault}.",
    "{name} complains that the {item} {fault}.",
)
OFFERED = (
    "We offer {remedy}.",
    "Give {remedy}.",
    "We will send {remedy}.",
    "Promise {remedy}.",
    "They get {remedy}.",
    "The answer is {remedy}.",
    "We owe them {remedy}.",
    "Our offer: {remedy}.",
)
REPLY_TAILS = ("", "Be kind.", "Keep it short.", "Two lines.")

# ---------------------------------------------------------------- dates

DATE_HEADS = (
    "",
    "A question on dates.",
    "Please work this out.",
    "For {name}:",
    "Check the date.",
    "A date is needed.",
    "Calendar:",
    "{name} asks:",
)
EVENTS = (
    "The parcel left on {day} {month}",
    "The {item} was sent on {day} {month}",
    "Repair began on {day} {month}",
    "The rent starts on {day} {month}",
    "{name} left on {day} {month}",
    "The work started on {day} {month}",
    "The offer was made on {day} {month}",
    "The bill came on {day} {month}",
    "Order {order} was packed on {day} {month}",
    "The sale opened on {day} {month}",
    "We begin on {day} {month}",
    "The voucher was printed on {day} {month}",
)
DURATIONS = (
    "and takes {offset} days.",
    "and needs {offset} days.",
    "for {offset} days.",
    "and ends {offset} days later.",
    "and is done after {offset} days.",
    "with a limit of {offset} days.",
    "and lasts {offset} days.",
    "plus {offset} days.",
    "and {offset} days are given.",
    "and then we wait {offset} days.",
    "and {offset} days must pass.",
    "so count {offset} days from there.",
)
DATE_TAILS = (
    "Which date is that?",
    "What is the date then?",
    "On which day does it end?",
    "Give the day and month.",
    "When is it?",
    "Name the date.",
    "When is that?",
    "Say which day.",
    "The date, please.",
)

# ---------------------------------------------------------------- total

TOTAL_HEADS = (
    "A customer buys",
    "Order {order} holds",
    "The basket has",
    "Please add up",
    "{name} wants",
    "On the bill there are",
    "In the cart:",
    "The desk packs",
    "We send",
    "Somebody buys",
    "Bill for {name}:",
    "A school asks for",
)
PIECES = ("{q} {i}s", "{q} x {i}", "{q} pieces of {i}", "{q} times {i}", "{q} of the {i}s")
PRICES = (
    " at {p} each",
    " for {p} each",
    " ({p} each)",
    ", {p} per piece",
    " at {p} apiece",
    ", each {p}",
    " that cost {p} each",
    " costing {p}",
    ", one for {p}",
    " priced {p}",
    " with {p} for each",
)
LINKS = (" and ", ", ", "; ", " plus ", ", then ", ", and ", " as well as ")
FEES = (
    ", plus {fee} for delivery",
    ", and {fee} for wrapping",
    ", with delivery at {fee}",
    ", plus a fee of {fee}",
)
TOTAL_TAILS = (
    "What is the total?",
    "How much is it?",
    "Give the total.",
    "What does it cost?",
    "Work out the sum.",
    "Total?",
    "How much in all?",
    "What is to be paid?",
    "The sum, please.",
)

# ---------------------------------------------------------------- policy

RULES = (
    "Rule: refund up to {first} days, voucher up to {second} days, then nothing; opened goods get nothing.",
    "We refund within {first} days and give a voucher within {second} days, never for opened goods.",
    "Until day {first} a refund, until day {second} a voucher, later nothing. Opened: nothing.",
    "Refund limit {first} days, voucher limit {second} days. Nothing for opened goods.",
    "Opened goods get nothing. Others: refund in the first {first} days, voucher until {second} days.",
    "Up to {first} days we give a refund, up to {second} days a voucher; opened goods get nothing.",
    "Returns: {first} days for money back, {second} days for a voucher. Opened: nothing.",
    "Policy: refund in {first} days; voucher in {second} days; nothing if late or opened.",
    "If it is opened, nothing. A refund is for {first} days, a voucher for {second} days.",
    "At most {first} days for a refund, at most {second} for a voucher; none if opened.",
)
CASES = (
    "The {item} came back after {days} days, {seal}.",
    "{name} returns a {item} after {days} days; it is {seal}.",
    "Order {order}: {days} days old, {seal}.",
    "The customer has had the {item} for {days} days. It is {seal}.",
    "It was bought {days} days ago and is {seal}.",
    "{days} days later the {item} is here, {seal}.",
    "{name} kept the {item} for {days} days; it is {seal}.",
    "The box is {seal}, the sale was {days} days ago.",
    "It is {seal} and {days} days old.",
    "{name} had order {order} for {days} days, {seal}.",
)
POLICY_TAILS = (
    "What do we do?",
    "Decide.",
    "What is right?",
    "Your decision?",
    "Which is it?",
    "What is the answer?",
    "And now?",
    "Say what to do.",
    "The decision, please.",
)

# ---------------------------------------------------------------- sort: a tail for rising and one for falling

SORT_HEADS = (
    "Open tickets:",
    "Put these in order:",
    "Tickets and hours waited:",
    "Order the list.",
    "Here are tickets:",
    "Hours and tickets:",
    "A list:",
    "The list of {name}:",
    "Tickets at the desk:",
    "Order these:",
)
JOINTS = (", ", "; ", " and ", " / ", " - ", ", then ", " + ", " or ")
DIRECTIONS = (
    "Smallest first.|Largest first.",
    "Lowest first.|Highest first.",
    "Shortest first.|Longest first.",
    "Start with the smallest.|Start with the largest.",
    "From lowest to highest.|From highest to lowest.",
    "Begin at the low end.|Begin at the high end.",
    "Go from small to large.|Go from large to small.",
    "The lowest one first.|The highest one first.",
    "Put the shortest on top.|Put the longest on top.",
)
