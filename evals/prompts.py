"""The words around a question: two permissions, the documents in order, the question last.

Documents come before the question, so that a longer context begins with the very tokens of a shorter one
and a prefix cache can reuse them.
"""

from collections.abc import Sequence

from evals.records import Document, Permission

ABSTENTION = "I don't know."

SYSTEM_PROMPTS: dict[Permission, str] = {
    "must_answer": (
        "Use the documents to answer the question. Reply with the answer only, in a few words. "
        "Always give an answer: if you are not sure, give your best guess."
    ),
    "may_abstain": (
        "Use the documents to answer the question. Reply with the answer only, in a few words. "
        f"If you do not know the answer, reply: {ABSTENTION}"
    ),
}


def render_document(document: Document) -> str:
    """The exact text by which a document enters a prompt, with its trailing separator."""
    return f"Document: {document.title} | {document.text}\n\n"


def render_question(question: str) -> str:
    return f"Question: {question}"


def build_messages(permission: Permission, documents: Sequence[Document], question: str) -> list[dict[str, str]]:
    """Chat messages for one sample: the permission as system message, then documents and question."""
    user = "".join(render_document(document) for document in documents) + render_question(question)
    return [
        {"role": "system", "content": SYSTEM_PROMPTS[permission]},
        {"role": "user", "content": user},
    ]
