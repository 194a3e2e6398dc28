"""Wordings of the families that deal with mails: extract, route and reply."""

from __future__ import annotations

from stillhouse.models.embedded.world.slots import Split
from stillhouse.models.embedded.world.wording import Wording

EXTRACT: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "A mail came in.",
            "Read this mail.",
            "Message from a customer:",
            "Here is a note from the inbox.",
            "Customer writes:",
            "New mail:",
            "",
            "Mail for the desk:",
            "The next mail:",
            "From the inbox:",
        ),
        forms=(
            "Hello, this is {name} from {city}. My {item} from order {order} has not come yet.",
            "Dear desk, order {order} is late. I bought a {item}. {name}, {city}.",
            "My name is {name}, I live in {city}. The {item} of order {order} is broken.",
            "Hi, I am waiting for my {item}. The order is {order}. Regards, {name} in {city}.",
            "In {city} nobody has seen my {item}, says {name}. The number was {order}.",
            "Order {order}: the {item} for {name} should go to {city}.",
            "Good evening, {name} writes. I need order {order} in {city}, it is a {item}.",
            "The {item} came to {city}, but {name} ordered another. It is order {order}.",
            "I am {name} and order {order} is wrong. A {item} was sent to {city}.",
            "A {item} for {name}, please, to {city}. I have the number {order}.",
            "Where is my {item}? It is in order {order}. {name}, {city}.",
            "{name} from {city} has a question on order {order}, the {item}.",
            "{order} is my order. I live in {city} and wait for the {item}. Yours, {name}.",
            "Please send the {item} to {city}. This is for {name}, order {order}.",
            "Thank you, the {item} arrived in {city}. {name}, order {order}.",
        ),
        tails=(
            "Give {fields} as JSON.",
            "Write JSON with {fields}.",
            "Return {fields} in JSON.",
            "I need {fields}, as a JSON object.",
            "JSON please: {fields}.",
            "Fill a JSON object with {fields}.",
            "Extract {fields} to JSON.",
            "Only {fields}, in JSON.",
            "{fields}: as JSON, please.",
            "What are {fields}? Answer in JSON.",
            "Show {fields} as a JSON object.",
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
            "My name is {name}. I think that {trouble}.",
            "Hi, about the {item}: {trouble}.",
            "I know about the {other}, it is done. But {trouble}.",
            "{name} says that {trouble}.",
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


REPLY: dict[Split, Wording] = {
    "train": Wording(
        heads=(
            "Write a short reply.",
            "Answer this customer.",
            "Draft a reply.",
            "Reply to a customer.",
            "Write back.",
            "A customer needs an answer.",
            "Write a mail.",
            "Answer for the desk.",
        ),
        forms=(
            "{name} says the {item} {fault}. We offer {remedy}.",
            "Customer: {name}. The {item} {fault}. Give {remedy}.",
            "To {name}, whose {item} {fault}; we will send {remedy}.",
            "{name} is angry: the {item} {fault}. Promise {remedy}.",
            "The {item} of {name} {fault}. They get {remedy}.",
            "{name} wrote that the {item} {fault}. The answer is {remedy}.",
            "Since the {item} {fault}, we owe {name} {remedy}.",
            "Mail by {name}: the {item} {fault}. Our offer: {remedy}.",
            "Offer {remedy} to {name}, because the {item} {fault}.",
            "{name} bought a {item} that {fault}. Give them {remedy}.",
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
