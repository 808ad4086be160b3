"""The vocabulary of the fictional world: name parts and the sentences that state or ask a fact.

Names are made of few, frequent parts, so that a small byte-level tokenizer spells each in one to three tokens.
"""

from dataclasses import dataclass

GIVEN_NAMES = tuple(
    """Mara Oren Lida Tovi Sela Bram Nadia Kesh Ilva Dorin Petra Anso Rhea Jorin Thea Milo Vera Caspar Yara Emil
    Noor Felix Greta Hugo Ines Jonas Kira Luca Mina Otto Paula Quinn Rosa Stefan Tara Ulrik Wanda Xenia Ada Boris
    Clara Dario Elsa Frida Gus Hana Ivo Jade Karl Lena Marek Nils Olga Piet Runa Sami Tilda Ugo Viola Wim Zora
    Arlo Bea Cora Dag Edda Finn Gilda Heike Ian Judit Knut Lotte Max Nora Oskar Pia Ralf Sven Toni""".split()
)
SURNAME_STEMS = tuple(
    """Vel Kal Tor Mar Dun Bre Sol Har Lin Fen Gra Hol Kes Mor Nor Ost Pel Ren Sta Tal Ul Var Wes Zan Ash Bol
    Cor Del Ebb Fal Gol Ir""".split()
)
SURNAME_ENDS = tuple("lek mann dahl sen ova berg stad rik well ford ino aris etti wick low".split())
CITY_STEMS = tuple(
    """Tar Bel Ost Kar Lun Mir Nov Pra Rov Sal Ter Vil Wen Yor Zel Ald Bran Cald Dor Elm Fros Grim Hel Isk Jar
    Kron Lor Mol Nar Or""".split()
)
CITY_ENDS = tuple("sk grad haven burg mouth port vale stead minster dam ov ik".split())
REGIONS = tuple(
    """Ostria Velonia Marland Tessaly Kelvia Normark Sundria Bravonia Carpia Delmora Estavia Galdonia Hestria
    Ilmara Jutavia Lorvenia Morvia Pannoria Quillia Rovania""".split()
)
RIVERS = tuple(
    """Isar Drava Lethe Morne Sarn Tyne Vesla Wye Arda Brenta Cher Doon Elba Fyle Garn Hode Indra Jala Kama
    Lune Mosa Neva Oka Pisa""".split()
)
PROFESSIONS = tuple(
    """botanist painter surgeon lawyer pilot chemist sculptor astronomer poet engineer dentist geologist baker
    violinist architect historian diver librarian printer judge tailor carpenter linguist banker""".split()
)
INSTRUMENTS = tuple("piano cello flute harp violin organ trumpet guitar oboe drums lute clarinet tuba banjo".split())
PRODUCTS = tuple(
    """clocks lamps bicycles glass paper pianos boots carpets cameras engines tiles pumps radios sails silk soap
    spoons stoves tea tractors wine cheese knives umbrellas""".split()
)
COMPANY_ENDS = tuple("Works Labs Foundry Brothers Trading Motors Mills Press Union Group".split())
GENRES = tuple("novel opera film play symphony ballet musical poem documentary comic".split())
ADJECTIVES = tuple(
    """Silent Golden Hidden Broken Distant Winter Crimson Empty Second Burning Frozen Lonely Narrow Paper Quiet
    Restless Salt Secret Shattered Silver Sleeping Stone Summer Velvet Wandering White Wild Black Blue Iron""".split()
)
NOUNS = tuple(
    """Harbor Garden River Mirror Bridge Candle Forest Island Letter Mountain Orchard Palace Road Season Shadow
    Station Storm Tower Valley Voyage Window Witness Clock Crown Desert Door Feather House Lantern Sea""".split()
)
EVENTS = tuple("fair congress regatta festival exhibition parade banquet race".split())


@dataclass(frozen=True, slots=True)
class Attribute:
    """How one fact is stated ({s} subject, {v} value) and asked ({e} the entity)."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EntityKind:
    """One kind of entity: how its label introduces it, its attributes, and the facts that point to others.

    `relations` maps a linking attribute to (kind that it points to, phrases for "the thing pointed to").
    """

    intro: tuple[str, ...]
    labelled: str
    pronouns: tuple[str, ...]
    attributes: dict[str, Attribute]
    relations: dict[str, tuple[str, tuple[str, ...]]]


KINDS: dict[str, EntityKind] = {
    "person": EntityKind(
        intro=("{n} was {al}.", "{n}, {al}.", "The {l} {n}.", "{n} worked as {al}."),
        labelled="the {l} {n}",
        pronouns=("She", "He"),
        attributes={
            "birthplace": Attribute(
                ("{s} was born in {v}.", "{s} came from {v}.", "{s} grew up in {v}.", "The birthplace of {s} is {v}."),
                ("Where was {e} born?", "In which city was {e} born?", "What is the birthplace of {e}?"),
            ),
            "birth_year": Attribute(
                ("{s} was born in the year {v}.", "The birth year of {s} is {v}.", "The life of {s} began in {v}."),
                ("When was {e} born?", "In which year was {e} born?", "What is the birth year of {e}?"),
            ),
            "employer": Attribute(
                ("{s} was employed by {v}.", "{s} spent many years at {v}.", "The employer of {s} was {v}."),
                ("Who employed {e}?", "Which company employed {e}?", "What was the employer of {e}?"),
            ),
            "instrument": Attribute(
                ("{s} played the {v}.", "{s} loved to play the {v}.", "The instrument of {s} was the {v}."),
                ("Which instrument did {e} play?", "What did {e} play?", "What was the instrument of {e}?"),
            ),
        },
        relations={
            "birthplace": ("city", ("the birthplace of {e}", "the city where {e} was born")),
            "employer": ("company", ("the employer of {e}", "the company that employed {e}")),
        },
    ),
    "city": EntityKind(
        intro=("{n} is a city in {l}.", "{n} lies in {l}.", "The city of {n} is in {l}."),
        labelled="{n} in {l}",
        pronouns=("It", "The city"),
        attributes={
            "river": Attribute(
                ("{s} stands on the {v}.", "The river of {s} is the {v}.", "{s} was built along the {v}."),
                ("On which river does {e} stand?", "What is the river of {e}?", "Which river runs through {e}?"),
            ),
            "founded": Attribute(
                ("{s} was founded in {v}.", "The founding year of {s} is {v}.", "{s} dates from {v}."),
                ("When was {e} founded?", "In which year was {e} founded?", "What is the founding year of {e}?"),
            ),
            "known_for": Attribute(
                ("{s} is known for its {v}.", "{s} is famous for {v}.", "The pride of {s} is its {v}."),
                ("What is {e} known for?", "What is {e} famous for?", "What is the pride of {e}?"),
            ),
            "mayor": Attribute(
                ("The mayor of {s} is {v}.", "{s} is governed by {v}.", "{s} elected {v} as mayor."),
                ("Who is the mayor of {e}?", "Who governs {e}?", "Who was elected mayor of {e}?"),
            ),
        },
        relations={"mayor": ("person", ("the mayor of {e}",))},
    ),
    "company": EntityKind(
        intro=("{n} makes {l}.", "{n} is a maker of {l}.", "The company {n} sells {l}."),
        labelled="the maker of {l} {n}",
        pronouns=("It", "The company"),
        attributes={
            "founder": Attribute(
                ("{s} was set up by {v}.", "The founder of {s} is {v}.", "{s} was started by {v}."),
                ("Who set up {e}?", "Who is the founder of {e}?", "Who started {e}?"),
            ),
            "headquarters": Attribute(
                ("{s} is based in {v}.", "{s} has its offices in {v}.", "The seat of {s} is {v}."),
                ("Where is {e} based?", "In which city is {e} based?", "What is the seat of {e}?"),
            ),
            "opened": Attribute(
                ("{s} opened in {v}.", "The first year of {s} was {v}.", "{s} began to trade in {v}."),
                ("When did {e} open?", "In which year did {e} begin to trade?", "What was the first year of {e}?"),
            ),
            "director": Attribute(
                ("{s} is led by {v}.", "The director of {s} is {v}.", "{s} is in the hands of {v}."),
                ("Who leads {e}?", "Who is the director of {e}?", "Who directs {e}?"),
            ),
        },
        relations={
            "founder": ("person", ("the founder of {e}",)),
            "headquarters": ("city", ("the seat of {e}", "the city where {e} is based")),
            "director": ("person", ("the director of {e}",)),
        },
    ),
    "work": EntityKind(
        intro=("{n} is {al}.", "The {l} {n}.", "{n}, {al}."),
        labelled="the {l} {n}",
        pronouns=("It", "The work"),
        attributes={
            "author": Attribute(
                ("{s} was written by {v}.", "The author of {s} is {v}.", "{s} is the work of {v}."),
                ("Who wrote {e}?", "Who is the author of {e}?", "By whom was {e} written?"),
            ),
            "published": Attribute(
                ("{s} appeared in {v}.", "{s} was first shown in {v}.", "The year of {s} is {v}."),
                ("When did {e} appear?", "In which year was {e} first shown?", "What is the year of {e}?"),
            ),
            "setting": Attribute(
                ("{s} is set in {v}.", "The story of {s} takes place in {v}.", "{s} plays in {v}."),
                ("Where is {e} set?", "In which city is {e} set?", "Where does the story of {e} take place?"),
            ),
            "dedication": Attribute(
                ("{s} is dedicated to {v}.", "{s} was made for {v}.", "The dedication of {s} names {v}."),
                ("To whom is {e} dedicated?", "For whom was {e} made?", "Whom does the dedication of {e} name?"),
            ),
        },
        relations={
            "author": ("person", ("the author of {e}", "the writer of {e}")),
            "setting": ("city", ("the setting of {e}", "the city where {e} is set")),
        },
    ),
}

EVENT_SENTENCES = (
    "The {event} of {year} in {city} was opened by {a}.",
    "{a} and {b} met at the {event} of {city} in {year}.",
    "In {year} {a} came to the {event} in {city} with {b}.",
    "{b} gave a prize to {a} at the {city} {event} of {year}.",
)
