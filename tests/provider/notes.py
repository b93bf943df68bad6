"""The rows that most tests deliver, and the submission that makes notes of them."""

from halo_provider.submission import Company, Submission, User

NOTE = Submission(
    name="note",
    key="id",
    user=User(id="user", traits={"name": "name"}),
    company=Company(id="company", traits={"name": "company"}),
    message="{text}",
)


def rows(number: int) -> list[dict[str, str]]:
    """Rows for NOTE, each of a user of its own."""
    return [
        {
            "id": str(each),
            "user": f"user_{each}",
            "name": f"Name {each}",
            "company": f"Company {each}",
            "text": f"Text {each}",
        }
        for each in range(1, number + 1)
    ]


def csv_text(notes: list[dict[str, str]]) -> str:
    """The rows as a CSV file, where no value needs quotes."""
    return "".join(f"{','.join(line)}\n" for line in (notes[0].keys(), *(note.values() for note in notes)))
