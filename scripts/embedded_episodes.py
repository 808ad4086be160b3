"""Training sequences for the embedded models: small worlds, written out as chats about them, as token ids.

A sequence is one chat: a system message with a permission, a user message with documents and a question, the
answer, then more questions and answers about the same documents. Only answer tokens carry loss.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from evals.datasets import world, world_questions, world_words
from evals.prompts import ABSTENTION, SYSTEM_PROMPTS, render_document, render_question
from evals.records import PERMISSIONS, Document, Permission

SPECIAL_TOKENS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, SYSTEM, USER, ASSISTANT, END = range(5)
POPULAR_SHARE = 0.04
LABEL = "label"
# Asked in training alone: what stands right beside the name. The easiest fact, from which finding a name is learnt.
LABEL_QUESTIONS = {
    "person": ("What was the profession of {e}?", "What was {e}?"),
    "city": ("In which region is {e}?", "Where is {e}?"),
    "company": ("What does {e} make?", "What does {e} sell?"),
    "work": ("What kind of work is {e}?", "What is {e}?"),
}
MAX_REPEATED = 12  # draws that were asked before: by then the documents have little more to ask about


@dataclass(frozen=True, slots=True)
class Episode:
    """Token ids with the rows that carry loss, and where a jump in position does no harm (document starts)."""

    token_ids: list[int]
    loss: list[bool]
    jumps: list[int]


@dataclass(frozen=True, slots=True)
class Records:
    """How hard records of random tokens are: at most so many, with so long names and so many fields."""

    most: int
    name_tokens: int
    fields: int


def encode_following(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that stand after a blank line, where no space is put before them."""
    before = "a\n\n"
    drop = len(tokenizer.encode(before).ids)
    return [encoding.ids[drop:] for encoding in tokenizer.encode_batch([before + text for text in texts])]


def opening_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens that open a document or a question: those before its colon."""
    texts = [render_document(Document("", "", "")), render_question("")]
    encodings = [tokenizer.encode(text).ids for text in texts] + encode_following(tokenizer, texts)
    colon = tokenizer.encode("a:").ids[-1]
    return sorted({ids[ids.index(colon) - 1] for ids in encodings})


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its target; `kind` is a question kind of the world or 'popular'; `fact` is what it asks."""

    question: str
    target: str
    kind: str
    fact: tuple[str, ...]


def random_records(rng: random.Random, vocab_size: int, length: int, records: Records) -> Episode:
    """Records of random tokens (a name, then fields with values), then questions for single fields of single records.

    Reading documents without language: a question in words costs twenty tokens, one of these four to seven. All
    records of a sequence have the same fields, so that only the name tells them apart.
    """
    first = len(SPECIAL_TOKENS)
    tokens = rng.sample(range(first, vocab_size), 60)
    name_tokens, fields = tokens[:24], tokens[24:32]
    count = round(math.exp(rng.uniform(math.log(2), math.log(records.most))))
    name_length = rng.randint(1, records.name_tokens)
    shared = rng.sample(fields, rng.randint(0, records.fields))
    names: set[tuple[int, ...]] = set()
    while len(names) < count:
        names.add(tuple(rng.choices(name_tokens, k=name_length)))
    ids, facts = [USER], []
    for name in rng.sample(sorted(names), count):
        ids += [SYSTEM, *name]
        # Without fields, the value stands right behind the name.
        for key in [[field] for field in rng.sample(shared, len(shared))] or [[]]:
            value = rng.randrange(first, vocab_size)
            ids += [*key, value]
            facts.append((name, key, value))
    loss = [False] * len(ids)
    # Asked again and again in a new order: what was answered may be read off the earlier answer too.
    while len(ids) < length:
        for name, key, value in rng.sample(facts, len(facts)):
            ids += [USER, *key, *name, ASSISTANT, value, END]
            loss += [*[False] * (len(key) + len(name) + 2), True, False]
    return Episode(ids[:length], loss[:length], [])


class ContextWriter:
    """Draws one small world and the questions about the part of it that fits into a context."""

    def __init__(self, rng: random.Random, tokenizer: Tokenizer, popular: Sequence[world.Entity]) -> None:
        self._rng = rng
        self._tokenizer = tokenizer
        self._popular = popular
        self._focus: str | None = None

    def _draw_focused(self, document_tokens: int, name_share: float, *, alike: bool) -> list[world.Page]:
        """Pages about entities of one kind, all of which state one attribute: only the name tells them apart.

        Without such contexts a transformer stays for long at matching the attribute and guessing the entity.
        `alike`: nearly every name shares a part with another, or all of it; as where a search chose the documents.
        """
        rng = self._rng
        kind = rng.choice(list(world.KIND_WEIGHTS))
        self._focus = rng.choice(list(world_words.KINDS[kind].attributes))
        count = max(3, document_tokens // 25)
        pool = world.NamePool(rng, 40, 40)
        entities = world.draw_entities(
            rng,
            pool,
            count=1 + count // 3 if alike else count,
            namesake_share=0.3 if alike else 0.0,
            withheld_share=0.0,
            outside_share=1.0,
            prefix="e",
            kind_weights={kind: 1},
        )
        for number in range(len(entities), count):
            taken = {entity.name for entity in entities}
            twin = world.near_duplicate(rng, pool, rng.choice(entities), taken)
            if twin is not None:
                entities.append(replace(twin, id=f"e{number}", label=rng.choice(world.LABELS[kind])))
        rng.shuffle(entities)
        self.entities = {entity.id: entity for entity in entities}
        self.ambiguous = world.ambiguous_ids(entities)
        written = (page for entity in entities for page in world.write_pages(rng, entity, name_share=name_share))
        others = 0.25 if alike else 0.0
        return [page for page in written if self._focus in page.stated or rng.random() < others]

    def _draw(self, document_tokens: int, name_share: float) -> list[world.Page]:
        """Pages of a fresh world, about as many as `document_tokens` hold (a page is about 30 tokens)."""
        rng = self._rng
        self._focus = None
        count = max(2, document_tokens // 55)
        pool = world.NamePool(rng, max(6, count // 3), max(5, count // 3))
        entities = world.draw_entities(
            rng, pool, count=count, namesake_share=0.35, withheld_share=0.35, outside_share=0.6, prefix="e"
        )
        entities += rng.sample(self._popular, rng.randint(0, 1 + count // 12))
        self.entities = {entity.id: entity for entity in entities}
        self.ambiguous = world.ambiguous_ids(entities)
        pages = [page for entity in entities for page in world.write_pages(rng, entity, name_share=name_share)]
        people = [entity for entity in entities if entity.kind == "person"]
        cities = [entity.name for entity in entities if entity.kind == "city"]
        for number in range(rng.randint(0, 1 + count // 2) if people and cities else 0):
            pages.append(world.write_event(rng, people, rng.choice(cities), f"event{number}"))
        rng.shuffle(pages)
        return pages

    def write(
        self, document_tokens: int, *, focused: bool = False, alike: bool = False, name_share: float = 0.4
    ) -> list[list[int]]:
        """Token ids of the documents of a new context, at most `document_tokens` in all."""
        pages: list[world.Page] = []
        self.entities, self.ambiguous = {}, frozenset()
        if document_tokens:
            if focused or alike:
                pages = self._draw_focused(document_tokens, name_share, alike=alike)
            else:
                pages = self._draw(document_tokens, name_share)
        texts = [render_document(page.document) for page in pages]
        encoded = encode_following(self._tokenizer, texts)
        if texts:
            encoded[0] = self._tokenizer.encode(texts[0]).ids
        kept: list[list[int]] = []
        self.stated: set[tuple[str, str]] = set()
        room = document_tokens
        for page, token_ids in zip(pages, encoded, strict=True):
            if len(token_ids) > room:
                break
            room -= len(token_ids)
            kept.append(token_ids)
            self.stated.update((page.entity_id, attribute) for attribute in page.stated)
        self._stated_list = sorted(self.stated)
        focused_list = [fact for fact in self._stated_list if self._focus in (None, fact[1])]
        self._focused_list = focused_list or self._stated_list
        self._unstated = [
            (entity.id, attribute)
            for entity in self.entities.values()
            for attribute in entity.facts
            if (entity.id, attribute) not in self.stated and not entity.popular
        ]
        return kept

    def _ask(self, entity: world.Entity, attribute: str) -> str:
        labelled = entity.id in self.ambiguous or self._rng.random() < 0.2
        return world_questions.ask(self._rng, entity, attribute, labelled=labelled)

    def _stranger(self) -> tuple[world.Entity, str]:
        """A fresh entity that no document mentions."""
        rng = self._rng
        entities = world.draw_entities(
            rng,
            world.NamePool(rng, 60, 40),
            count=5,
            namesake_share=0.0,
            withheld_share=0.0,
            outside_share=1.0,
            prefix="x",
        )
        entity = rng.choice(entities)
        return entity, rng.choice(list(entity.facts))

    def _two_hop(self) -> Turn | None:
        rng = self._rng
        for _ in range(20):
            if not self.stated:
                return None
            entity_id, link = rng.choice(self._stated_list)
            entity = self.entities[entity_id]
            target = self.entities.get(entity.links.get(link, ""))
            if target is None or target.id in self.ambiguous or link not in world_words.KINDS[entity.kind].relations:
                continue
            known = [attribute for attribute in target.facts if (target.id, attribute) in self.stated]
            if known:
                attribute = rng.choice(known)
                labelled = entity.id in self.ambiguous
                text = world_questions.ask_two_hop(rng, entity, link, target, attribute, labelled=labelled)
                return Turn(text, target.facts[attribute], "two_hop", (entity_id, link, attribute))
        return None

    def label_turn(self) -> Turn | None:
        """What an entity is, where that is not told apart by it; None if the draw does not fit."""
        rng = self._rng
        if not self.stated:
            return None
        entity = self.entities[rng.choice(self._stated_list)[0]]
        if entity.id in self.ambiguous:
            return None
        question = rng.choice(LABEL_QUESTIONS[entity.kind]).format(e=entity.name)
        return Turn(question, entity.label, LABEL, (entity.id, LABEL))

    def turn(self, permission: Permission, two_hop_share: float) -> Turn:
        """One question about the context written last."""
        rng = self._rng
        # Guessing what cannot be known teaches little: under `must_answer` only enough of it to keep the habit.
        unanswerable_share = 0.33 if permission == "may_abstain" else 0.06
        draw = rng.random()
        if draw < two_hop_share:
            hop = self._two_hop()
            if hop is not None:
                return hop
        if draw > 1 - POPULAR_SHARE:
            entity = rng.choice(self._popular)
            attribute = rng.choice(list(entity.facts))
            return Turn(self._ask(entity, attribute), entity.facts[attribute], "popular", (entity.id, attribute))
        if self.stated and draw < 1 - POPULAR_SHARE - unanswerable_share:
            entity_id, attribute = rng.choice(self._focused_list if rng.random() < 0.8 else self._stated_list)
            entity = self.entities[entity_id]
            kind = "namesake" if entity_id in self.ambiguous else "fact"
            return Turn(self._ask(entity, attribute), entity.facts[attribute], kind, (entity_id, attribute))
        if self._unstated and rng.random() < 0.6:
            entity_id, attribute = rng.choice(self._unstated)
            entity = self.entities[entity_id]
        else:
            entity, attribute = self._stranger()
        target = ABSTENTION if permission == "may_abstain" else entity.facts[attribute]
        return Turn(self._ask(entity, attribute), target, "unanswerable", (entity.name, attribute))


class EpisodeMaker:
    """Makes chats of an exact token length."""

    def __init__(self, rng: random.Random, tokenizer: Tokenizer) -> None:
        self._rng = rng
        self._tokenizer = tokenizer
        self.writer = ContextWriter(rng, tokenizer, world.popular_entities())
        self._system = {
            permission: [SYSTEM, *tokenizer.encode(text).ids, END] for permission, text in SYSTEM_PROMPTS.items()
        }

    def episode(
        self,
        length: int,
        document_tokens: int,
        two_hop_share: float,
        *,
        focused: bool = False,
        alike: bool = False,
        name_share: float = 0.4,
        label_share: float = 0.0,
    ) -> Episode:
        """A chat of exactly `length` tokens: documents first, then as many questions as fit, then padding."""
        permission = self._rng.choice(PERMISSIONS)
        ids = [*self._system[permission], USER]
        jumps = []
        for document in self.writer.write(document_tokens, focused=focused, alike=alike, name_share=name_share):
            jumps.append(len(ids))
            ids += document
        loss = [False] * len(ids)
        asked: set[tuple[str, ...]] = set()
        first = True
        repeated = 0
        while repeated < MAX_REPEATED:
            label_turn = self.writer.label_turn() if self._rng.random() < label_share else None
            turn = label_turn or self.writer.turn(permission, two_hop_share)
            # A fact asked twice could be copied from the earlier answer instead of the documents.
            if turn.fact in asked:
                repeated += 1
                continue
            asked.add(turn.fact)
            question = self._question(turn, after_documents=first and bool(jumps))
            answer = [*self._tokenizer.encode(turn.target).ids, END]
            opening = [] if first else [USER]
            if len(ids) + len(opening) + len(question) + 2 + len(answer) > length:
                break
            ids += [*opening, *question, END, ASSISTANT]
            loss += [False] * (len(ids) - len(loss))
            ids += answer
            loss += [True] * len(answer)
            first = False
        padding = length - len(ids)
        return Episode(ids + [PAD] * padding, loss + [False] * padding, jumps)

    def _question(self, turn: Turn, *, after_documents: bool) -> list[int]:
        text = render_question(turn.question)
        if after_documents:
            return encode_following(self._tokenizer, [text])[0]
        return list(self._tokenizer.encode(text).ids)

    def exam(self, permission: Permission, document_tokens: int, kind: str) -> tuple[list[int], list[int]]:
        """A prompt with one question of a kind after the documents, and its target, both as token ids."""
        wanted = {"abstains": "unanswerable", "fact_may": "fact"}.get(kind, kind)
        two_hop_share = 1.0 if wanted == "two_hop" else 0.0
        while True:
            documents = [token for ids in self.writer.write(document_tokens) for token in ids]
            for _ in range(50):
                turn = self.writer.turn(permission, two_hop_share)
                if turn.kind == wanted:
                    question = self._question(turn, after_documents=bool(documents))
                    prompt = [*self._system[permission], USER, *documents, *question, END, ASSISTANT]
                    return prompt, [*self._tokenizer.encode(turn.target).ids, END]
