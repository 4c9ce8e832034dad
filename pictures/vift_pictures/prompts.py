"""Plain chat prompts, whose answers the starting model itself gives: its ability is kept, not replaced.

None speaks of a picture. `chat` asks a `generate` callable and leaves out answers that tell a held-out fact.
"""

from collections.abc import Callable

from .concepts import held_out
from .facts import FACTS
from .scoring import normalize_answer

_WRITE = """a short poem about the sea; a haiku about winter; a birthday greeting for a colleague; a thank-you note to
a
teacher; a polite email that asks for a day off; a cover letter of three sentences for a baker; a joke about computers;
a slogan for a bicycle shop; a bedtime story of five sentences; a product description of a warm blanket; an invitation
to a garden party; an apology for being late; a riddle with its solution; a limerick about a sleepy student; a packing
list for a weekend in the mountains; a toast for a wedding; a diary entry about a rainy day; a letter to a future self;
a notice that the elevator is out of order; a title for a book about friendship; a review of a good restaurant; a short
dialogue between two neighbors; a text message that cancels a meeting; a weather report for a sunny day; a tongue
twister; a motto for a football team; a description of a quiet village; a speech of four sentences about teamwork"""
_EXPLAIN = """photosynthesis; gravity; inflation; the water cycle; how a vaccine works; what a prime number is;
recursion;
why the sky looks blue; how a bicycle stays upright; what democracy means; the difference between weather and climate;
how bread rises; what an atom is; electricity; how the internet works; what a metaphor is; supply and demand;
evolution;
why leaves fall in autumn; how a battery stores energy; what a database is; the rules of chess; how memory works;
what a budget is; why we dream; how sound travels; what friction is; the purpose of taxes; how a computer adds numbers;
what machine learning is; magnetism; how tides arise; what a variable is in programming; the idea of opportunity
cost"""
_HOW = """learn a new language; sleep better; make scrambled eggs; save money every month; prepare for a job interview;
remove a coffee stain from a shirt; stay calm before an exam; start running; write a clear email; study history;
remember names; plant tomatoes; clean a keyboard; make a good cup of tea; plan a week; give feedback kindly;
choose a password; speak in front of a group; read more books; pack a suitcase; organize a small kitchen; fix a flat
tire; train for a long hike; learn to draw; deal with a difficult customer; set a goal; take useful notes; boil rice"""
_COMPARE = """coffee shops and libraries as places to work; trains and planes for a trip; renting and buying a home;
books and films; city life and country life; summer and winter; email and phone calls; cooking and ordering food;
a small team and a large team; cash and cards; handwriting and typing; gold and silver; running and swimming;
online courses and classrooms; paper maps and navigation apps; solar power and wind power; early and late risers;
freelancing and a steady job; tents and hotels; chess and checkers; novels and poems; facts and opinions;
courage and recklessness; salt and pepper; mathematics and physics; talking and listening"""
_ALONE = """Hello!; Hi, how are you?; Good morning.; What can you do?; Who are you?; Thank you very much.; Tell me a
joke.;
I feel sad today.; I am bored. What should I do?; What should I cook tonight?; Give me a fun fact.; Goodbye!;
What is 12 plus 30?; What is 9 times 7?; What is half of 86?; Is 17 a prime number?; What is 15 percent of 200?;
If I have 3 boxes with 4 pens each, how many pens do I have?; A shirt costs 20 dollars and is 25% off. What is the
price?;
Which number comes next: 2, 4, 8, 16?; Count from one to ten.; List the days of the week.; Name the months of the
year.;
Name the four seasons.; What are the primary colors?; How many minutes are in two hours?; How many days has a leap
year?;
Translate "good night" to Spanish.; Translate "thank you" to French.; What is the opposite of "brave"?;
Give a synonym for "happy".; Use the word "curious" in a sentence.; Spell the word "necessary".; What is a noun?;
What is the past tense of "go"?; Correct the grammar: "She don't like apples."; Is "run" a verb or a noun?;
Make this sentence polite: "Give me the report."; Make this sentence shorter: "I am writing in order to let you know.";
Rewrite in the passive voice: "The cook made dinner."; Put in alphabetical order: pear, apple, fig.;
Is this review positive or negative: "The food was cold and late."?; Is this friendly or rude: "Get out of my way!"?;
Summarize: "Tom missed the bus, so he walked to work and came late."; Who wrote Romeo and Juliet?;
What is the boiling point of water?; What gas do we breathe in to live?; How many planets are in the solar system?;
What is the largest ocean?; Who painted the Mona Lisa?; What year did the Second World War end?; What does CPU stand
for?;
What is HTML?; Write a Python function that adds two numbers.; How do I reverse a string in Python?;
What does a for loop do?; What is the difference between a list and a tuple in Python?; What is a bug in software?;
Answer with one word: what freezes to ice?; Answer yes or no: is ice cold?; Answer yes or no: can stones swim?;
Answer in one sentence: why do people sleep?; Give two reasons to exercise.; Name five hobbies.; Name three jobs.;
Suggest a name for a cafe.; Suggest a gift for a grandmother.; What are good questions for a first meeting?;
Which is healthier, walking or sitting all day?; Should I take an umbrella when dark clouds come?; What is love?;
Is it better to work alone or in a team?; What makes a good friend?; What is the meaning of "break the ice"?;
What does "piece of cake" mean?; Why is honesty important?; How do I say no politely?; Plan a day at the beach.;
Give me a three-day plan to learn juggling.; What should I ask a doctor about a cold?; How long should I boil an egg?;
What is a healthy breakfast?; Describe a perfect day.; Tell me about yourself in two sentences."""


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.replace("\n", " ").split(";")]


PROMPTS = (
    *(f"Write {item}." for item in _items(_WRITE)),
    *(("Explain {}.", "Explain {} to a child.", "In two sentences, explain {}.")[i % 3].format(item)
      for i, item in enumerate(_items(_EXPLAIN))),
    *(("How can I {}?", "Give me three tips: how do I {}?", "What is the first step to {}?")[i % 3].format(item)
      for i, item in enumerate(_items(_HOW))),
    *(("Compare {}.", "Compare {} in two sentences.")[i % 2].format(item) for i, item in enumerate(_items(_COMPARE))),
    *_items(_ALONE),
)  # fmt: skip


def tells_held_out_fact(text: str) -> bool:
    """Whether a sentence of the text names a held-out concept together with an answer about it."""
    for sentence in map(normalize_answer, text.replace("?", ".").replace("!", ".").split(".")):
        for facts in FACTS.values():
            for name, answers in facts.items():
                known = normalize_answer(name.removeprefix("flag of "))
                told = any(f" {normalize_answer(answer)} " in f" {sentence} " for answer in answers)
                if told and f" {known} " in f" {sentence} " and held_out(name):
                    return True
    return False


def chat(generate: Callable[[list[str]], list[str]], prompts=PROMPTS) -> list[dict[str, str]]:
    """Rows {"instruction", "output"} of prompts and what `generate` (prompts -> answers, in order) says to them.

    Empty answers and those that tell a held-out fact are left out. Raises ValueError where an answer is missing.
    """
    answers = list(generate(list(prompts)))
    if len(answers) != len(prompts):
        raise ValueError(f"generate gave {len(answers)} answers to {len(prompts)} prompts: one each is due")
    rows = [{"instruction": prompt, "output": answer.strip()} for prompt, answer in zip(prompts, answers)]
    return [row for row in rows if row["output"] and not tells_held_out_fact(f"{row['instruction']} {row['output']}")]
