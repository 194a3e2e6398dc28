"""Wordings of the families that calculate or decide: dates, total, policy and sort."""

from __future__ import annotations

from stillhouse.models.embedded.world.slots import Split
from stillhouse.models.embedded.world.wording import Wording

DATES: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "",
            "A question on dates.",
            "Order {order}.",
            "Please work this out.",
            "For {name}:",
            "Check the date.",
            "A date is needed.",
            "Calendar:",
            "{name} asks:",
        ),
        forms=(
            "The parcel left on {day} {month} and takes {offset} days.",
            "The {item} was sent on {day} {month}; it needs {offset} days.",
            "Repair began on {day} {month} and lasts {offset} days.",
            "Today is {day} {month}. We answer in {offset} days.",
            "Bought on {day} {month}, with {offset} days to return it.",
            "It is {offset} days after {day} {month}.",
            "Add {offset} days to {day} {month}.",
            "The rent began on {day} {month} and is for {offset} days.",
            "On {day} {month} we said: wait {offset} days.",
            "Count {offset} days from {day} {month}.",
            "The offer of {day} {month} holds for {offset} days.",
            "{name} left on {day} {month} and is away for {offset} days.",
            "The work started on {day} {month}, and {offset} days are needed.",
            "{offset} days from {day} {month} the shop closes.",
            "The invoice of {day} {month} must be paid in {offset} days.",
        ),
        tails=(
            "Which date is that?",
            "What is the date then?",
            "On which day does it end?",
            "Give the day and month.",
            "When is it?",
            "Name the date.",
            "What date is it?",
            "When is that?",
            "Say which day.",
            "Which day is the last?",
            "The date, please.",
            "When does that end?",
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
            "In the cart:",
            "The desk packs",
            "We send",
            "Somebody buys",
            "Bill for {name}:",
            "A school asks for",
        ),
        forms=(
            "{q} {i}s at {p} each",
            "{q} {i}s for {p} each",
            "{q} {i}s ({p} each)",
            "{q} {i}s, {p} per piece",
            "{q} x {i} at {p}",
            "{q} pieces of {i} for {p}",
            "{q} {i}s at {p} apiece",
            "{q} {i}s, each {p}",
            "{q} of the {i}s at {p}",
            "{q} {i}s that cost {p} each",
            "{q} {i}s costing {p}",
            "{q} {i}s, one at {p}",
            "{q} times {i}, {p} each",
            "{q} {i}s with {p} for each",
        ),
        tails=(
            "What is the total?",
            "How much is it?",
            "Give the total.",
            "What does it cost?",
            "Work out the sum.",
            "Total?",
            "How much in all?",
            "What is to be paid?",
            "Say what it costs.",
            "How much for everything?",
            "The sum, please.",
        ),
    ),
    "dev": Wording(
        heads=("We sold", "Today {name} ordered", "The list says", "Count"),
        forms=(
            "{q} {i}s, at {p} each",
            "{q} {i}s [{p} each]",
            "{q} of {i} at {p} each",
            "{q} {i}s, {p} apiece",
        ),
        tails=(
            "What is due?",
            "How much is all of it?",
            "What is the whole sum?",
            "Say the total.",
        ),
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
            "{q} {i}s at a price of {p}",
            "{q} {i}s which cost {p} each",
            "{q} {i}s, one for {p}",
            "{q} times the {i} at {p}",
            "{q} {i}s, costing {p} each",
            "{q} {i}s sold at {p} each",
            "{q} pieces of {i} at {p}",
            "{q} {i}s priced {p}",
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


# What stands between the two kinds of goods of an order.
LINKS: dict[Split, tuple[str, ...]] = {
    "train": (" and ", ", ", "; ", " plus ", ", then ", ", and "),
    "dev": (" and also ",),
    "test": (", together with ", " as well as ", " & "),
}

FEES: dict[Split, tuple[str, ...]] = {
    "train": (", plus {fee} for delivery", ", and {fee} for wrapping", ", with delivery at {fee}"),
    "dev": (", plus a fee of {fee}", ", delivery is {fee}"),
    "test": (", and a delivery fee of {fee}", ", plus {fee} for the post", ", shipping costs {fee}"),
}


POLICY: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "Rule: refund up to {first} days, voucher up to {second} days, then nothing; opened"
            " goods get nothing.",
            "We refund within {first} days and give a voucher within {second} days, never for opened goods.",
            "Until day {first} a refund, until day {second} a voucher, later nothing. Opened: nothing.",
            "Refund limit {first} days, voucher limit {second} days. Nothing for opened goods.",
            "Opened goods get nothing. Others: refund in the first {first} days, voucher until"
            " {second} days.",
            "Up to {first} days we give a refund, up to {second} days a voucher; opened goods get nothing.",
            "Returns: {first} days for money back, {second} days for a voucher. Opened: nothing.",
            "For {first} days there is a refund and for {second} days a voucher, but never for opened goods.",
            "Policy: refund in {first} days; voucher in {second} days; nothing if late or opened.",
            "If it is opened, nothing. A refund is for {first} days, a voucher for {second} days.",
            "The desk refunds to day {first} and gives vouchers to day {second}, not for opened goods.",
            "At most {first} days for a refund, at most {second} for a voucher; none if opened.",
        ),
        forms=(
            "The {item} came back after {days} days, {seal}.",
            "{name} returns a {item} after {days} days; it is {seal}.",
            "Order {order}: {days} days old, {seal}.",
            "The customer has had the {item} for {days} days. It is {seal}.",
            "It was bought {days} days ago and is {seal}.",
            "A {item} was returned after {days} days, {seal}.",
            "{days} days later the {item} is here, {seal}.",
            "{name} kept the {item} for {days} days; it is {seal}.",
            "The box is {seal}, the sale was {days} days ago.",
            "It is {seal} and {days} days old.",
            "{name} had order {order} for {days} days, {seal}.",
        ),
        tails=(
            "What do we do?",
            "Decide.",
            "What is right?",
            "Your decision?",
            "Which is it?",
            "What is the answer?",
            "What does {name} get?",
            "And now?",
            "Say what to do.",
            "The decision, please.",
        ),
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
        tails=(
            "What follows?",
            "How do we decide?",
            "Say what is right.",
            "Refund or not?",
        ),
    ),
    "test": Wording(
        heads=(
            "Our rule says: {first} days refund, {second} days voucher, then nothing. If opened, nothing.",
            "Money back in {first} days, a voucher in {second} days, nothing after that or for opened goods.",
            "Terms: up to day {first} we refund, up to day {second} we give a voucher; opened goods are out.",
            "If opened, the customer gets nothing. If not: {first} days refund, {second} days voucher.",
            "Customers have {first} days for a refund and {second} days for a voucher; opened goods"
            " are not taken.",
            "Refunds end after {first} days, vouchers end after {second} days, opened goods get nothing.",
            "The limit for a refund is {first} days, the one for a voucher {second} days; none for"
            " opened ones.",
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


# A form of the sort family is what stands between two tickets; a tail words both directions, rising first.
SORT: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "Open tickets:",
            "Put these in order:",
            "Tickets and hours waited:",
            "Order the list.",
            "Here are tickets:",
            "Hours and tickets:",
            "A list:",
            "The list of {name}:",
            "Tickets at the desk:",
            "Look at the list:",
            "Order these:",
        ),
        forms=("[, ]", "[; ]", "[ and ]", "[ / ]", "[ - ]", "[, then ]", "[. ]", "[ + ]"),
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
        forms=("[, and ]", "[ | ]", "[ & ]", "[ * ]"),
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
            "[; then ]",
            "[ or ]",
            "[ with ]",
            "[; and ]",
            "[ = ]",
            "[ before ]",
            "[ next to ]",
            "[, also ]",
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
