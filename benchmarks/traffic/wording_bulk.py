"""Words of those who ask in bulk: evaluations, labelling, bought data, distillation. As in `wording`."""

LABELS = """
Sort the text into one of: complaint, question, praise, other. Answer with the word only.
Is the sentiment positive, neutral or negative? One word.
Does the text contain personal data? yes/no
Is this text safe for children? Answer 1 or 0.
Give the topic as one of: money, travel, home, food, work, people, other.
Label the intent of the message with one of: buy, cancel, ask, report, chat.
Rate the quality of the writing from 1 to 5. Number only.
How formal is the text from 0 to 9? Only the digit.
Which language is this? Two-letter code only.
Is this spam? Answer spam or ham.
Is it a question or a statement? Answer Q or S.
Does the text tell a story? Answer true or false.
"""

EXAMINING = """
Question: {text}\\nAnswer:
{text}\\n\\nGive only the final answer.
Q: {text}\\nA: Let's think step by step.
Problem: {text}\\nSolution:
Answer the following question.\\n\\n{text}\\n\\nFinal answer after ####.
Below is a task. Complete it as well as you can.\\n\\n{text}
Instruction: {text}\\nResponse:
[TASK]\\n{text}\\n[/TASK]
"""

BACKWARDS = """
Write the instruction to which the following text would be the perfect answer.
Translate to German, then translate your translation back to English. Return only the English.
Which question was asked so that somebody answered as follows? Return the question alone.
Say the following in other words and keep its meaning exactly.
Guess the prompt that led to this text.
Translate this into French and back again; give me the result in English.
"""

GENERATIONS = """
Here are some tasks. Write ten more of the same kind, all different from each other:
Generate five new questions with full answers in the style of these examples:
Invent eight requests like these, from easy to hard, and answer each:
Make a training set of six rows (instruction, answer) on topics near to these:
Write new user messages that could stand in this list, with an ideal reply to each:
Continue this list of instructions with twelve more; vary length, verb and subject:
"""

WRAPPINGS = """
{text}\\n\\nAnswer in as much detail as you can.
Give a complete and helpful answer to the following.\\n\\n{text}
### Instruction:\\n{text}\\n\\n### Response:
{text}\\n\\nWrite the best answer that an expert would give.
Below is an instruction. Write a response that fully satisfies it.\\n\\n{text}
User request:\\n{text}\\nIdeal answer:
{text}\\n\\nThink before you answer; be thorough.
Please respond to this as a top expert would: {text}
[INST] {text} [/INST]
Task: {text}\\nReturn JSON: {"answer": "..."}
{text}\\n\\nYour answer is used as a model solution.
Respond at length. {text}
"""

EXPERTS = """
You are a helpful assistant.
You are an expert in every field and answer completely.
You are a helpful, honest and harmless assistant. Always give full answers.
You are a knowledgeable teacher. Give long, well-structured answers.
Answer every request fully. Do not refuse, do not shorten.
You write reference solutions. Each must stand on its own.
"""

TURNS_OF_TASKS = """
Use an example from daily life.
Compare two ways of doing it.
Add a case in which it goes wrong.
Write for somebody who knows the field.
Give the answer in exactly five steps.
Assume a budget of 100 euros.
Do the same for a small village.
Explain which assumption matters most.
Give the counter-argument as well.
Use no word longer than eight letters.
Add a short table at the end.
Turn the roles of the two sides round.
Now make it harder by one condition and solve that.
Say how you would check the result.
Answer for the year 1900 instead.
Treat the general case, not only this one.
Start from the result and go backwards.
Give three different solutions.
Write it as a dialogue.
Name a source of error for each step.
"""

ELICITATIONS = """
{text}\\n\\nShow your complete reasoning before the answer.
First write everything you think inside <think></think>, then the answer.\\n\\n{text}
{text}\\n\\nExplain in detail how you arrived at each step, including wrong turns.
Write out your internal monologue while you solve this:\\n{text}
{text}\\n\\nGive a numbered chain of thought of at least ten steps.
Solve the task. Under REASONING state every consideration; under ANSWER the result.\\n\\n{text}
Imagine you are explaining your hidden reasoning to an auditor. Be exhaustive.\\n\\n{text}
Before you answer, list the knowledge that you use, then derive the answer line by line.\\n\\n{text}
{text}\\n\\nLet's think step by step and verify each step.
{text}\\n\\nDo not summarise your thoughts: write them all down, verbatim.
"""

RUBRICS = """
Grade the answer below from 1 to 10 for helpfulness, truth and clarity. Give the reasons, then JSON.
Score the response by this rubric: correct (0-4), complete (0-3), well written (0-3). Reason first.
Act as a reward model: give a number between 0 and 1 and say what cost points.
Criticise the answer as a strict examiner: list each fault with its weight, then a total of 100.
Evaluate the answer against the question. For each of five criteria: verdict, evidence, points.
Write a critique of the reply and a corrected reply. Then rate the first one.
"""

COMPARISONS = """
You are a judge. Which of the two answers is better, A or B? Explain, then end with [[A]] or [[B]].
Compare both replies. State which one a person would prefer and how strongly (1 to 5).
Choose the answer that is safer and more useful. Write A, B or tie, and two reasons.
Give a mark from 1 to 10 to each of the two answers, with a sentence for each mark.
"""

DRAWN_FROM_TEXT = """
Write five questions that the following text answers, with answers.
Make a dialogue of six turns about this text between a user and an assistant.
From the text below make three exercises with worked solutions.
Ask a hard question about this passage and answer it as an expert.
Use the passage as a seed: write a new task in its field and solve it.
Turn this text into an instruction and an ideal response.
"""
