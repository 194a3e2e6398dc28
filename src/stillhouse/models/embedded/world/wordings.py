"""How the desk's questions are worded: every phrase belongs to one family and one split.

A template is a head, a form and a tail. The training split crosses its lists freely (hundreds of
templates a family), so that a model must find the slots by what is around them; the dev and the test
split pair theirs by position, which gives few, named templates for intervals clustered by template.
"""

from __future__ import annotations

from typing import NamedTuple

from stillhouse.models.embedded.world.slots import Split


class Wording(NamedTuple):
    """Phrases of one family in one split; `{...}` marks the slots that the family fills."""

    heads: tuple[str, ...]
    forms: tuple[str, ...]
    tails: tuple[str, ...]

    def count(self, split: Split) -> int:
        if split == "train":
            return len(self.heads) * len(self.forms) * len(self.tails)
        return len(self.heads)

    def template(self, split: Split, index: int) -> str:
        """The template with this number; an empty head or tail leaves no stray blank."""
        if split == "train":
            index, tail = divmod(index, len(self.tails))
            head, form = divmod(index, len(self.forms))
        else:
            head = form = tail = index
        parts = (
            self.heads[head],
            self.forms[form % len(self.forms)],
            self.tails[tail % len(self.tails)],
        )
        return " ".join(part for part in parts if part)


EXTRACT: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "A mail came in.",
            "Read this mail.",
            "Message from a customer:",
            "Here is a note from the inbox.",
            "Customer writes:",
            "New mail:",
        ),
        forms=(
            "Hello, this is {name} from {city}. My {item} from order {order} has not come yet.",
            "Dear desk, order {order} is late. I bought a {item}. {name}, {city}.",
            "My name is {name}, I live in {city}. The {item} of order {order} is broken.",
            "Hi, I am waiting for my {item}. The order is {order}. Regards, {name} in {city}.",
            "In {city} nobody has seen my {item}, says {name}. The number was {order}.",
            "Order {order}: the {item} for {name} should go to {city}.",
        ),
        tails=(
            "Give {fields} as JSON.",
            "Write JSON with {fields}.",
            "Return {fields} in JSON.",
            "I need {fields}, as a JSON object.",
            "JSON please: {fields}.",
            "Fill a JSON object with {fields}.",
        ),
    ),
    "dev": Wording(
        heads=(
            "This was in the inbox today:",
            "From the desk:",
            "One more mail.",
            "Please look at this mail.",
        ),
        forms=(
            "Good morning, {name} here. I ordered a {item} to {city}, the order was {order}.",
            "About order {order}: {name} in {city} still waits for a {item}.",
            "I want to return the {item}. Order {order}, {name}, {city}.",
            "{name} of {city} writes that the {item} in order {order} is wrong.",
        ),
        tails=(
            "Answer with {fields} in JSON.",
            "Put {fields} into JSON.",
            "As JSON: {fields}.",
            "Make a JSON object of {fields}.",
        ),
    ),
    "test": Wording(
        heads=(
            "A customer sent us this:",
            "Look at the next mail.",
            "We got this message.",
            "Inbox, today:",
            "",
            "Please read:",
            "A letter for the desk.",
            "This one is new.",
        ),
        forms=(
            "Good day, where is order {order}? It was a {item} for {name} in {city}.",
            "I am {name}. A {item} was sent to me in {city}, but order {order} is not complete.",
            "Thanks for order {order}. The {item} is fine. Yours, {name} from {city}.",
            "{name} asks about a {item}. Sent to {city} as order {order}.",
            "To {city}, for {name}: one {item}, see order {order}.",
            "Hello desk, the {item} came to {city} today. Order {order} is done. {name}.",
            "Can you stop order {order}? I do not need the {item}. {name}, now living in {city}.",
            "The box in {city} was empty, no {item} in it. I am {name} and the order is {order}.",
        ),
        tails=(
            "List {fields} as JSON.",
            "Show me {fields} in a JSON object.",
            "Which {fields} are given? Use JSON.",
            "Take out {fields}, JSON only.",
            "Reply in JSON with {fields}.",
            "Copy {fields} to JSON.",
            "JSON with {fields}, nothing else.",
            "Find {fields} and write them as JSON.",
        ),
    ),
}

ROUTE: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "Which queue takes this message?",
            "Route this mail.",
            "Name the queue for this mail.",
            "Where should this message go?",
            "Pick a queue.",
            "Sort this into a queue:",
        ),
        forms=(
            "Hello, {trouble}. Thanks, {name}",
            "Dear desk, {trouble}. {name}",
            "Order {order}: {trouble}.",
            "I am not writing about the {other}; {trouble}.",
            "The {other} is fine, but {trouble}.",
            "My {item} is here. Still, {trouble}.",
        ),
        tails=("", "Queue?", "One word.", "Only the queue, please.", "Name it."),
    ),
    "dev": Wording(
        heads=("Choose the queue.", "Who handles this?", "Send this to a queue.", "Which team reads this?"),
        forms=(
            "Good morning, {trouble}. Yours, {name}",
            "{name} writes: {trouble}.",
            "There is no question about the {other}, but {trouble}.",
            "About order {order}, {trouble}.",
        ),
        tails=("", "Just the queue.", "Say which.", "Queue name?"),
    ),
    "test": Wording(
        heads=(
            "What queue does this belong to?",
            "Please route:",
            "Assign a queue to the mail.",
            "For which queue is this?",
            "Give the right queue.",
            "Which desk should answer?",
            "Mail to be routed:",
            "Read and route.",
        ),
        forms=(
            "Good day, {trouble}. Regards, {name}",
            "I have looked at the {other} and it is good; however, {trouble}.",
            "Since order {order} came, {trouble}.",
            "Can you help? I see that {trouble}. {name}",
            "We talked about the {other} last week. Now {trouble}.",
            "This is {name}. It seems that {trouble}.",
            "I like the {item}. Only that {trouble}.",
            "Sorry to ask again: {trouble}.",
        ),
        tails=("", "Write the queue.", "Answer in one word.", "", "The queue only.", "", "Which one?", ""),
    ),
}

DATES: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "",
            "A question on dates.",
            "Order {order}.",
            "Please work this out.",
            "For {name}:",
            "Check the date.",
        ),
        forms=(
            "The parcel left on {day} {month} and takes {offset} days.",
            "The {item} was sent on {day} {month}; it needs {offset} days.",
            "Repair began on {day} {month} and lasts {offset} days.",
            "Today is {day} {month}. We answer in {offset} days.",
            "Bought on {day} {month}, with {offset} days to return it.",
            "It is {offset} days after {day} {month}.",
            "Add {offset} days to {day} {month}.",
        ),
        tails=(
            "Which date is that?",
            "What is the date then?",
            "On which day does it end?",
            "Give the day and month.",
            "When is it?",
            "Name the date.",
        ),
    ),
    "dev": Wording(
        heads=("Help with a date.", "", "{name} asks.", "About order {order}."),
        forms=(
            "The {item} leaves on {day} {month} and is {offset} days on the road.",
            "We wait {offset} days from {day} {month}.",
            "The rent starts on {day} {month} and runs for {offset} days.",
            "From {day} {month} on, count {offset} days.",
        ),
        tails=("What day is it then?", "Tell me the date.", "Which day and month?", "When does it end?"),
    ),
    "test": Wording(
        heads=(
            "",
            "{name} wants to know a date.",
            "Order {order} again.",
            "One date, please.",
            "",
            "Calendar question.",
            "Work with dates:",
            "Look at the calendar.",
        ),
        forms=(
            "The {item} ships on {day} {month} and arrives {offset} days later.",
            "A voucher of {day} {month} is good for {offset} days.",
            "If we pack on {day} {month} and need {offset} days,",
            "The bill came on {day} {month}, to be paid in {offset} days.",
            "{offset} days will have passed since {day} {month}.",
            "Start at {day} {month} and go on for {offset} days.",
            "The sale opened on {day} {month}, {offset} days before it closes.",
            "The {item} is lent from {day} {month} for {offset} days.",
        ),
        tails=(
            "When is it here?",
            "What is its last day?",
            "what date do we get?",
            "By which date?",
            "Say the date.",
            "Where do we end?",
            "When does it close?",
            "Which date comes out?",
        ),
    ),
}

TOTAL: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "A customer buys",
            "Order {order} holds",
            "The basket has",
            "Please add up",
            "{name} wants",
            "On the bill there are",
        ),
        forms=(
            "{q1} {i1}s at {p1} each and {q2} {i2}s at {p2} each{fee}.",
            "{q1} {i1}s for {p1} each, {q2} {i2}s for {p2} each{fee}.",
            "{q1} {i1}s ({p1} each) and {q2} {i2}s ({p2} each){fee}.",
            "{q1} {i1}s, {p1} per piece, and {q2} {i2}s, {p2} per piece{fee}.",
            "{q1} x {i1} at {p1}, {q2} x {i2} at {p2}{fee}.",
        ),
        tails=(
            "What is the total?",
            "How much is it?",
            "Give the total.",
            "What does it cost?",
            "Work out the sum.",
            "Total?",
        ),
    ),
    "dev": Wording(
        heads=("We sold", "Today {name} ordered", "The list says", "Count"),
        forms=(
            "{q1} {i1}s at {p1} apiece and {q2} {i2}s at {p2} apiece{fee}.",
            "{q1} {i1}s, each {p1}, and {q2} {i2}s, each {p2}{fee}.",
            "{q1} of the {i1}s at {p1}, then {q2} of the {i2}s at {p2}{fee}.",
            "{q1} {i1}s [{p1} each], {q2} {i2}s [{p2} each]{fee}.",
        ),
        tails=("What is due?", "How much in all?", "What is the whole sum?", "Say the total."),
    ),
    "test": Wording(
        heads=(
            "An order for {name}:",
            "In order {order} we find",
            "Someone takes",
            "Send to {name}:",
            "I would like",
            "The shop delivers",
            "Please price this:",
            "My order is",
        ),
        forms=(
            "{q1} {i1}s at a price of {p1} each, {q2} {i2}s at a price of {p2} each{fee}.",
            "{q1} {i1}s that cost {p1} each and {q2} {i2}s that cost {p2} each{fee}.",
            "{q1} {i1}s, one for {p1}, and {q2} {i2}s, one for {p2}{fee}.",
            "{q1} times the {i1} at {p1} and {q2} times the {i2} at {p2}{fee}.",
            "{q1} {i1}s with {p1} for each, {q2} {i2}s with {p2} for each{fee}.",
            "{q1} {i1}s sold at {p1} each; {q2} {i2}s sold at {p2} each{fee}.",
            "{q1} pieces of {i1} at {p1} and {q2} pieces of {i2} at {p2}{fee}.",
            "{q1} {i1}s priced {p1} and {q2} {i2}s priced {p2}{fee}.",
        ),
        tails=(
            "How much do they pay?",
            "What is the amount?",
            "Please give the sum.",
            "What will it cost in all?",
            "How much is that together?",
            "What is the price of everything?",
            "Sum?",
            "What must I pay?",
        ),
    ),
}

FEES: dict[Split, tuple[str, ...]] = {
    "train": (", plus {fee} for delivery", ", and {fee} for wrapping", ", with delivery at {fee}"),
    "dev": (", plus a fee of {fee}", ", delivery is {fee}"),
    "test": (", and a delivery fee of {fee}", ", plus {fee} for the post", ", shipping costs {fee}"),
}

POLICY: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "Rule: refund up to {first} days, voucher up to {second} days, then nothing; opened goods get nothing.",
            "We refund within {first} days and give a voucher within {second} days, never for opened goods.",
            "Until day {first} a refund, until day {second} a voucher, later nothing. Opened: nothing.",
            "Refund limit {first} days, voucher limit {second} days. Nothing for opened goods.",
            "Opened goods get nothing. Others: refund in the first {first} days, voucher until {second} days.",
        ),
        forms=(
            "The {item} came back after {days} days, {seal}.",
            "{name} returns a {item} after {days} days; it is {seal}.",
            "Order {order}: {days} days old, {seal}.",
            "The customer has had the {item} for {days} days. It is {seal}.",
            "It was bought {days} days ago and is {seal}.",
        ),
        tails=("What do we do?", "Decide.", "What is right?", "Your decision?", "Which is it?"),
    ),
    "dev": Wording(
        heads=(
            "Policy: {first} days for a refund, {second} days for a voucher, nothing later or if opened.",
            "A refund needs at most {first} days, a voucher at most {second}. Opened goods get none.",
            "Nothing is given for opened goods; else refund to day {first} and voucher to day {second}.",
            "The shop refunds for {first} days and gives vouchers for {second} days, if not opened.",
        ),
        forms=(
            "A {item} is back, {days} days later and {seal}.",
            "{name} had it {days} days, {seal}.",
            "After {days} days we get the {item}, {seal}.",
            "Now it is {days} days, and the box is {seal}.",
        ),
        tails=("What follows?", "How do we decide?", "Say what to do.", "Refund or not?"),
    ),
    "test": Wording(
        heads=(
            "Our rule says: {first} days refund, {second} days voucher, then nothing. If opened, nothing.",
            "Money back in {first} days, a voucher in {second} days, nothing after that or for opened goods.",
            "Terms: up to day {first} we refund, up to day {second} we give a voucher; opened goods are out.",
            "If opened, the customer gets nothing. If not: {first} days refund, {second} days voucher.",
            "Customers have {first} days for a refund and {second} days for a voucher; opened goods are not taken.",
            "Refunds end after {first} days, vouchers end after {second} days, opened goods get nothing.",
            "The limit for a refund is {first} days, the one for a voucher {second} days; none for opened ones.",
            "Within {first} days: refund. Within {second} days: voucher. Later or opened: nothing.",
        ),
        forms=(
            "A {item} was sent back after {days} days, {seal}.",
            "{name} wants to return order {order} after {days} days, {seal}.",
            "This {item} has been away for {days} days and is {seal}.",
            "{days} days have passed and the {item} is {seal}.",
            "It took {name} {days} days to send it, {seal}.",
            "We got the {item} {seal}, {days} days after the sale.",
            "The {item} is {seal}; it was sold {days} days ago.",
            "Return of {order}: {seal}, {days} days.",
        ),
        tails=(
            "What does the customer get?",
            "What is the decision?",
            "Please decide.",
            "What now?",
            "What should the desk do?",
            "Which one applies?",
            "Give the decision.",
            "Tell me the result.",
        ),
    ),
}

# A tail of the sort family words both directions: rising, then falling.
SORT: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "Open tickets:",
            "Put these in order:",
            "Tickets and hours waited:",
            "Order the list.",
            "Here are tickets:",
        ),
        forms=("{id} ({key})", "{id}: {key}", "{id} with {key}", "{id} at {key}", "{id} has {key}"),
        tails=(
            "Smallest first.|Largest first.",
            "Lowest first.|Highest first.",
            "Shortest first.|Longest first.",
            "Start with the smallest.|Start with the largest.",
            "From lowest to highest.|From highest to lowest.",
            "Begin at the low end.|Begin at the high end.",
            "Go from small to large.|Go from large to small.",
        ),
    ),
    "dev": Wording(
        heads=("We have these tickets:", "Sort them:", "Waiting:", "A list to sort:"),
        forms=("{id} = {key}", "{id} [{key}]", "{id}, {key} hours", "{id} is at {key}"),
        tails=(
            "The lowest one first.|The highest one first.",
            "Begin with the shortest.|Begin with the longest.",
            "Start at the small end.|Start at the large end.",
            "Smallest on top.|Largest on top.",
        ),
    ),
    "test": Wording(
        heads=(
            "Please sort these tickets:",
            "Bring this into order:",
            "The board shows:",
            "These wait at the desk:",
            "Sort the tickets.",
            "On my list:",
            "Which comes next?",
            "All tickets of {name}:",
        ),
        forms=(
            "{id} waits {key} h",
            "{id} / {key}",
            "ticket {id} {key}",
            "{id} - {key}",
            "{id} for {key} hours",
            "{id} since {key} h",
            "{id} shows {key}",
            "{id} stands at {key}",
        ),
        tails=(
            "The smallest comes first.|The largest comes first.",
            "Go from lowest to highest.|Go from highest to lowest.",
            "Put the shortest on top.|Put the longest on top.",
            "First the lowest, please.|First the highest, please.",
            "The list starts with the smallest.|The list starts with the largest.",
            "Take the shortest first.|Take the longest first.",
            "Lowest at the top.|Highest at the top.",
            "From small to large.|From large to small.",
        ),
    ),
}

REPLY: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "Write a short reply.",
            "Answer this customer.",
            "Draft a reply.",
            "Reply to a customer.",
            "Write back.",
        ),
        forms=(
            "{name} says the {item} {fault}. We offer {remedy}.",
            "Customer: {name}. The {item} {fault}. Give {remedy}.",
            "To {name}, whose {item} {fault}; we will send {remedy}.",
            "{name} is angry: the {item} {fault}. Promise {remedy}.",
            "The {item} of {name} {fault}. They get {remedy}.",
        ),
        tails=("", "Be kind.", "Keep it short.", "Two lines."),
    ),
    "dev": Wording(
        heads=("Compose an answer.", "A reply, please.", "Help me answer.", "Write to a customer."),
        forms=(
            "The {item} {fault}, writes {name}. Our offer is {remedy}.",
            "For {name}: the {item} {fault}, so we give {remedy}.",
            "{name} told us that the {item} {fault}. Offer {remedy}.",
            "We owe {name} {remedy}, because the {item} {fault}.",
        ),
        tails=("", "Be polite.", "A few words.", ""),
    ),
    "test": Wording(
        heads=(
            "Please write an answer.",
            "Draft a mail.",
            "Send a friendly reply.",
            "What do we write back?",
            "Prepare a reply.",
            "Write to the customer.",
            "A short answer is needed.",
            "Reply for the desk.",
        ),
        forms=(
            "{name} complains that the {item} {fault}. The desk grants {remedy}.",
            "{name} has a {item} that {fault}. We can give {remedy}.",
            "A {item} {fault}; it belongs to {name}. {remedy} is on the way.",
            "Tell {name} that we send {remedy}, as the {item} {fault}.",
            "Since the {item} {fault}, {name} should get {remedy}.",
            "Mail from {name}: my {item} {fault}. Offer them {remedy}.",
            "{name} reports: {item} {fault}. Remedy: {remedy}.",
            "The {item} for {name} {fault}. Please offer {remedy}.",
        ),
        tails=("", "Friendly, please.", "Not too long.", "", "Short.", "", "In two lines.", ""),
    ),
}
