"""The recipe's training sequences: loss on answers alone, answers that the documents support."""

import random

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evals.prompts import ABSTENTION, build_messages, render_document, render_question
from evals.records import Document
from scripts.embedded_episodes import (
    ASSISTANT,
    END,
    PAD,
    SYSTEM,
    EpisodeMaker,
    Records,
    encode_following,
    random_records,
)
from scripts.embedded_tokenizer import CHAT_TEMPLATE, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(600, seed=1)


@pytest.fixture
def maker(tokenizer):
    return EpisodeMaker(random.Random(5), tokenizer)


def test_records_are_answered_by_what_they_say():
    rng = random.Random(1)
    for records in (Records(4, 1, 0), Records(8, 3, 2)):
        episode = random_records(rng, 600, 224, records)
        ids = episode.token_ids
        told = ids[1 : ids.index(2, 1)]
        assert 2 <= told.count(SYSTEM) <= records.most
        answers = [i for i, loss in enumerate(episode.loss) if loss]
        assert len(answers) > 5
        assert all(ids[i - 1] == ASSISTANT and ids[i] in told for i in answers)


def test_focused_documents_all_state_what_is_asked(maker):
    """One kind, one attribute: as many values of the same kind as documents, so that only the name tells."""
    maker.writer.write(200, focused=True)
    kinds = {maker.writer.entities[entity_id].kind for entity_id, _ in maker.writer.stated}
    assert len(kinds) == 1
    asked = [maker.writer.turn("must_answer", 0.0) for _ in range(60)]
    attributes = [turn.fact[1] for turn in asked if turn.kind == "fact"]
    assert max(map(attributes.count, attributes)) > len(attributes) / 2
    label = maker.writer.label_turn()
    assert label.target == maker.writer.entities[label.fact[0]].label


def test_alike_documents_share_parts_of_their_names(maker):
    """As where a search chose the documents: nearly every name has a part in common with another."""
    shared = described = 0
    for _ in range(30):
        maker.writer.write(400, alike=True)
        names = [entity.name.removeprefix("The ").split(" ") for entity in maker.writer.entities.values()]
        if len(names[0]) == 1:  # cities: one word of a stem and an end
            continue
        for name in names:
            described += 1
            shared += sum(bool(set(name) & set(other)) for other in names) > 1
        asked = [maker.writer.turn("must_answer", 0.0) for _ in range(10)]
        assert any(turn.kind in ("fact", "namesake") for turn in asked)
    assert shared > 0.9 * described > 0


def test_loss_is_on_answers_alone(maker):
    for _ in range(20):
        episode = maker.episode(700, 200, 0.2)
        assert len(episode.token_ids) == len(episode.loss) == 700
        previous = PAD
        for token, loss in zip(episode.token_ids, episode.loss, strict=True):
            if loss and previous != ASSISTANT:
                assert previous not in (END, PAD)
            assert not (loss and token in (PAD, ASSISTANT))
            previous = token
        # Every answer ends with the end token, and that carries loss too.
        ends = [i for i, token in enumerate(episode.token_ids) if token == ASSISTANT]
        assert ends
        assert all(episode.loss[i + 1] for i in ends)


def test_jumps_are_document_starts(maker, tokenizer):
    episode = maker.episode(700, 300, 0.0)
    assert len(episode.jumps) > 3
    assert all(tokenizer.decode(episode.token_ids[i:]).startswith("Document:") for i in episode.jumps)


def test_exam_targets_stand_in_the_prompt_or_abstain(maker, tokenizer):
    for kind in ("fact", "namesake", "two_hop"):
        for _ in range(10):
            prompt, target = maker.exam("must_answer", 300, kind)
            assert tokenizer.decode(target) in tokenizer.decode(prompt)
    prompt, target = maker.exam("may_abstain", 300, "abstains")
    assert tokenizer.decode(target) == ABSTENTION


def test_prompts_are_those_of_the_harness(tokenizer):
    """Segments encoded one by one, as in training, give the tokens of the rendered chat template."""
    environment = ImmutableSandboxedEnvironment()
    messages = build_messages("may_abstain", [Document("d", "A Title", "A text. Another.")], "Who wrote it?")
    rendered = environment.from_string(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    ids = tokenizer.encode(rendered, add_special_tokens=False).ids
    system, user = (tokenizer.encode(message["content"]).ids for message in messages)
    assert ids == [1, *system, END, 2, *user, END, ASSISTANT]


def test_documents_encoded_one_by_one_are_those_of_the_whole_prompt(maker, tokenizer):
    """What follows a document changes none of its tokens, at training as when served."""
    documents = [Document(f"d{i}", f"Title {i}", f"Text number {i}. Another.") for i in range(3)]
    whole = build_messages("must_answer", documents, "Who wrote it?")[1]["content"]
    texts = [render_document(document) for document in documents]
    pieces = [
        tokenizer.encode(texts[0]).ids,
        *encode_following(tokenizer, [*texts[1:], render_question("Who wrote it?")]),
    ]
    assert [token for piece in pieces for token in piece] == tokenizer.encode(whole).ids
    prompt, _ = maker.exam("must_answer", 300, "fact")
    start, end = prompt.index(2) + 1, len(prompt) - 2
    assert tokenizer.encode(tokenizer.decode(prompt[start:end])).ids == prompt[start:end]


@pytest.mark.parametrize("text", ["", " two  spaces ", "\n\nlines\n", "日本 語🙂", "tab\tx", "a\r\n b"])
def test_decoding_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
