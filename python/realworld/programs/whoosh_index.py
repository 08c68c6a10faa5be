"""Whoosh: an index written by processes that take documents from a JoinableQueue."""

import os

from whoosh import fields, index
from whoosh.qparser import QueryParser


def main():
    os.mkdir("index")
    made = index.create_in("index", fields.Schema(path=fields.ID(stored=True), body=fields.TEXT))
    for multisegment in (False, True):
        writer = made.writer(procs=2, multisegment=multisegment, batchsize=10)
        for n in range(120):
            writer.add_document(path=f"/{multisegment}/{n}", body=f"text number {n} {'odd' if n % 2 else 'even'}")
        writer.commit()
        with made.searcher() as searcher:
            found = searcher.search(QueryParser("body", made.schema).parse("odd"), limit=None)
            print(made.doc_count(), len(found))


if __name__ == "__main__":
    main()
