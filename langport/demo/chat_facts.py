"""What langport-demo-chat knows: small tables of facts, as data.

Every table is a `Relation`: pairs (subject, answer) with the phrasings that ask for them. `FACTS` is the flat
list, one `Fact` per pair in its plainest phrasing, from which a test can pick. Nothing here knows about tokens or
training.
"""

from typing import NamedTuple


class Fact(NamedTuple):
    """A question in its plainest phrasing and a word that a right answer holds."""

    question: str
    keyword: str


class Relation(NamedTuple):
    """Pairs (x, y), the questions that ask for y given x, and the sentences that state y; plainest first."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read "x:y; x:y" into pairs."""
    return tuple((x.strip(), y.strip()) for x, y in (entry.split(":") for entry in text.split(";")))


def _steps(names: tuple[str, ...], step: int) -> tuple[tuple[str, str], ...]:
    """Pair every name with the one `step` places on, going round."""
    return tuple((name, names[(i + step) % len(names)]) for i, name in enumerate(names))


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "gold")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

CAPITALS = _pairs(
    "France:Paris; Germany:Berlin; Italy:Rome; Spain:Madrid; Portugal:Lisbon; England:London; "
    "Ireland:Dublin; Austria:Vienna;Poland:Warsaw; Greece:Athens; Norway:Oslo; Sweden:Stockholm; "
    "Finland:Helsinki; Denmark:Copenhagen; Hungary:Budapest;Belgium:Brussels; Iceland:Reykjavik; "
    "Russia:Moscow; Turkey:Ankara; Egypt:Cairo; Kenya:Nairobi; Japan:Tokyo; China:Beijing;India:New Delhi; "
    "Thailand:Bangkok; Canada:Ottawa; Mexico:Mexico City; Cuba:Havana; Peru:Lima; "
    "Chile:Santiago;Australia:Canberra; the Netherlands:Amsterdam; the United States:Washington"
)

RELATIONS = (
    Relation(
        (
            "What is the capital of {x}?",
            "Which city is the capital of {x}?",
            "Name the capital of {x}.",
            "Tell me the capital of {x}.",
            "What's the capital city of {x}?",
            "Capital of {x}?",
            "Do you know the capital of {x}?",
        ),
        ("The capital of {x} is {y}.", "It is {y}.", "{y} is the capital of {x}."),
        CAPITALS,
    ),
    Relation(
        (
            "What is the opposite of {x}?",
            "Tell me the opposite of {x}.",
            "Which word is the opposite of {x}?",
            "What's the opposite of {x}?",
            "Opposite of {x}?",
        ),
        ("The opposite of {x} is {y}.", "It is {y}."),
        _pairs(
            "hot:cold; cold:hot; big:small; small:big; up:down; down:up; left:right; day:night; night:day; "
            "open:closed;fast:slow; slow:fast; happy:sad; sad:happy; old:young; high:low; low:high; "
            "long:short; short:long; hard:soft;soft:hard; light:dark; dark:light; wet:dry; dry:wet; "
            "full:empty; empty:full; loud:quiet; quiet:loud; rich:poor;good:bad; bad:good; clean:dirty; "
            "dirty:clean; thick:thin; thin:thick; early:late; late:early; in:out; yes:no"
        ),
    ),
    Relation(
        (
            "What sound does a {x} make?",
            "What does a {x} say?",
            "Which sound does a {x} make?",
            "What noise does a {x} make?",
            "How does a {x} sound?",
        ),
        ("A {x} says {y}.", "It says {y}."),
        _pairs(
            "cow:moo; dog:woof; cat:meow; duck:quack; sheep:baa; pig:oink; horse:neigh; lion:roar; "
            "frog:ribbit; bee:buzz;snake:hiss; mouse:squeak; rooster:cock-a-doodle-doo; donkey:hee-haw; "
            "crow:caw; wolf:howl"
        ),
    ),
    Relation(
        (
            "What is a baby {x} called?",
            "How do you call a baby {x}?",
            "What do you call a baby {x}?",
            "Name of a baby {x}?",
        ),
        ("A baby {x} is called a {y}.", "It is called a {y}."),
        _pairs(
            "dog:puppy; cat:kitten; cow:calf; horse:foal; sheep:lamb; bear:cub; duck:duckling; "
            "goose:gosling; frog:tadpole;pig:piglet; kangaroo:joey; swan:cygnet; goat:kid; hen:chick"
        ),
    ),
    Relation(
        (
            "What colour is {x}?",
            "What color is {x}?",
            "Which colour is {x}?",
            "Tell me the colour of {x}.",
            "What is the colour of {x}?",
        ),
        ("The colour of {x} is {y}.", "It is {y}."),
        _pairs(
            "the sky:blue; grass:green; the sun:yellow; snow:white; coal:black; blood:red; a "
            "banana:yellow; a carrot:orange;a tomato:red; a plum:purple; chocolate:brown; milk:white; a "
            "flamingo:pink; an elephant:grey; a lemon:yellow;a cucumber:green; the sea:blue; a "
            "strawberry:red"
        ),
    ),
    Relation(
        (
            "Which language is spoken in {x}?",
            "What language do people speak in {x}?",
            "What is the language of {x}?",
            "Which language do they speak in {x}?",
        ),
        ("In {x} people speak {y}.", "It is {y}."),
        _pairs(
            "France:French; Germany:German; Italy:Italian; Spain:Spanish; Portugal:Portuguese; "
            "England:English; Japan:Japanese;China:Chinese; Russia:Russian; Greece:Greek; Poland:Polish; "
            "Sweden:Swedish; Mexico:Spanish; Turkey:Turkish;Brazil:Portuguese; Egypt:Arabic"
        ),
    ),
    Relation(
        (
            "Which continent is {x} in?",
            "On which continent is {x}?",
            "What continent is {x} in?",
            "Where is {x}?",
        ),
        ("{x} is in {y}.", "It is in {y}."),
        _pairs(
            "France:Europe; Germany:Europe; Italy:Europe; Spain:Europe; Greece:Europe; Norway:Europe; "
            "Egypt:Africa; Kenya:Africa;Nigeria:Africa; Japan:Asia; China:Asia; India:Asia; Thailand:Asia; "
            "Canada:North America; Mexico:North America;Peru:South America; Chile:South America; "
            "Brazil:South America"
        ),
    ),
    Relation(
        (
            "How many legs does {x} have?",
            "How many legs has {x}?",
            "Tell me how many legs {x} has.",
            "What number of legs does {x} have?",
        ),
        ("The number of legs of {x} is {y}.", "It is {y}."),
        _pairs(
            "a dog:four; a cat:four; a horse:four; a spider:eight; an ant:six; a bee:six; a bird:two; a "
            "hen:two; a snake:zero;a fish:zero; a table:four; a person:two; an octopus:eight"
        ),
    ),
    Relation(
        (
            "How many sides does a {x} have?",
            "How many sides has a {x}?",
            "Tell me how many sides a {x} has.",
            "What number of sides does a {x} have?",
        ),
        ("A {x} has {y} sides.", "It has {y} sides."),
        _pairs("triangle:three; square:four; rectangle:four; pentagon:five; hexagon:six; octagon:eight"),
    ),
    Relation(
        (
            "Which day comes after {x}?",
            "What day comes after {x}?",
            "What is the day after {x}?",
            "Which day follows {x}?",
        ),
        ("The day after {x} is {y}.", "It is {y}."),
        _steps(DAYS, 1),
    ),
    Relation(
        ("Which day comes before {x}?", "What day comes before {x}?", "What is the day before {x}?"),
        ("The day before {x} is {y}.", "It is {y}."),
        _steps(DAYS, -1),
    ),
    Relation(
        (
            "Which month comes after {x}?",
            "What month comes after {x}?",
            "What is the month after {x}?",
            "Which month follows {x}?",
        ),
        ("The month after {x} is {y}.", "It is {y}."),
        _steps(MONTHS, 1),
    ),
    Relation(
        (
            "Which letter comes after {x}?",
            "What letter comes after {x}?",
            "What is the letter after {x}?",
            "Which letter follows {x}?",
        ),
        ("The letter after {x} is {y}.", "It is {y}."),
        _steps(LETTERS, 1)[:-1],
    ),
    Relation(
        (
            "What is {x} in French?",
            "How do you say {x} in French?",
            "Translate {x} into French.",
            "Say {x} in French.",
        ),
        ("In French, {x} is {y}.", "It is {y}."),
        _pairs(
            "hello:bonjour; goodbye:au revoir; thank you:merci; cat:chat; dog:chien; house:maison; "
            "water:eau; bread:pain;red:rouge; blue:bleu; one:un; two:deux; three:trois; yes:oui; no:non"
        ),
    ),
    Relation(
        (
            "What is {x} in German?",
            "How do you say {x} in German?",
            "Translate {x} into German.",
            "Say {x} in German.",
        ),
        ("In German, {x} is {y}.", "It is {y}."),
        _pairs(
            "hello:hallo; goodbye:auf Wiedersehen; thank you:danke; cat:Katze; dog:Hund; house:Haus; "
            "water:Wasser; bread:Brot;red:rot; blue:blau; one:eins; two:zwei; three:drei; yes:ja; no:nein"
        ),
    ),
    Relation(
        ("{x}?", "{x}? Please tell me.", "Tell me: {x}?"),
        ("{y}.",),
        _pairs(
            "How many days are in a week:There are seven days in a week;How many months are in a "
            "year:There are twelve months in a year;How many hours are in a day:There are twenty-four "
            "hours in a day;How many minutes are in an hour:There are sixty minutes in an hour;How many "
            "seconds are in a minute:There are sixty seconds in a minute;How many letters are in the "
            "alphabet:There are twenty-six letters in the alphabet;How many fingers are on a hand:There "
            "are five fingers on a hand;How many wheels does a car have:A car has four wheels;How many "
            "wheels does a bicycle have:A bicycle has two wheels;How many seasons are there:There are four "
            "seasons;What are the seasons:The seasons are spring, summer, autumn and winter;What are the "
            "primary colours:The primary colours are red, yellow and blue;What do bees make:Bees make "
            "honey;What do cows give:Cows give milk;What do birds lay:Birds lay eggs;Where do fish "
            "live:Fish live in the water;What is the largest planet:The largest planet is Jupiter;What is "
            "the smallest planet:The smallest planet is Mercury;Which planet do we live on:We live on the "
            "planet Earth;What is the tallest mountain:The tallest mountain is Mount Everest;What is the "
            "largest ocean:The largest ocean is the Pacific;What is the largest animal:The largest animal "
            "is the blue whale;What is the fastest land animal:The fastest land animal is the cheetah;What "
            "is frozen water:Frozen water is ice;What falls from clouds:Rain falls from clouds;What is the "
            "first month of the year:The first month of the year is January;What is the last month of the "
            "year:The last month of the year is December;What is the first letter of the alphabet:The "
            "first letter of the alphabet is A;What is the last letter of the alphabet:The last letter of "
            "the alphabet is Z;What is the first day of the week:The first day of the week is Monday;Who "
            "wrote Hamlet:Shakespeare wrote Hamlet;Who painted the Mona Lisa:Leonardo da Vinci painted the "
            "Mona Lisa;What is LangPort:LangPort is a server that gives language models one address which "
            "speaks the OpenAI API;What does LangPort do:LangPort serves language models behind the OpenAI "
            "API;What is Python:Python is a programming language;What is a token:A token is a small piece "
            "of text that a language model reads;What is a language model:A language model is a program "
            "that guesses the next piece of a text;What is an API:An API is a way for programs to talk to "
            "each other"
        ),
    ),
)


def _facts() -> tuple[Fact, ...]:
    """One fact per pair; for whole-sentence answers the keyword is the sentence."""
    return tuple(Fact(relation.questions[0].format(x=x), y) for relation in RELATIONS for x, y in relation.pairs)


FACTS = _facts()
"""Every fact the model was trained on: `keyword` occurs in the greedy answer to `question`."""
