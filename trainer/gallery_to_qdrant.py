"""Copies a gallery to a collection of Qdrant, for searches beyond one machine.

    tercet export people.gallery people.safetensors
    python trainer/gallery_to_qdrant.py people.safetensors people --url http://localhost:6333

The collection, which must not be there yet, compares as the model does (cosine, or Euclidean: Qdrant has no squared one, which ranks
alike) and searches exactly if it is asked to (`search_params=SearchParams(exact=True)`). A point's payload has the person, the picture's
fingerprint and where it came from. Needs the package qdrant-client; `--path FOLDER` takes its local mode instead of a server.
"""

import argparse
import json
import struct
import uuid

import numpy as np
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

TOGETHER = 1000


def read(path):
    """Embeddings [N, D], and for each row the person, the picture and the source."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = np.fromfile(file, dtype=np.uint8)

    def tensor(name, dtype):
        begin, end = header[name]["data_offsets"]
        return data[begin:end].view(dtype).reshape(header[name]["shape"])

    about = header["__metadata__"]
    people = json.loads(about["identities"])
    names = [people[label] for label in tensor("labels", "<i8")]
    pictures = json.loads(about["pictures"])
    return tensor("embeddings", "<f4"), list(zip(names, pictures, json.loads(about["names"]))), about


def copy(client, collection, path):
    """Makes the collection; returns how many points it has."""
    embeddings, rows, about = read(path)
    measures = {"cosine": Distance.COSINE, "Euclidean": Distance.EUCLID, "squared Euclidean": Distance.EUCLID}
    if about["distance"] not in measures:
        raise SystemExit(f"{path}: Qdrant does not compare by {about['distance']}")
    if client.collection_exists(collection):
        raise SystemExit(f"{collection}: already there")
    client.create_collection(collection, VectorParams(size=embeddings.shape[1], distance=measures[about["distance"]]))
    for first in range(0, len(rows), TOGETHER):
        points = [
            PointStruct(
                # The same sample is the same point, whenever it is copied.
                id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{person}\0{picture}")),
                vector=embedding.tolist(),
                payload={"person": person, "picture": picture, "source": source, "model": about["model"]},
            )
            for embedding, (person, picture, source) in zip(
                embeddings[first : first + TOGETHER], rows[first : first + TOGETHER]
            )
        ]
        client.upsert(collection, points, wait=True)
    return client.count(collection, exact=True).count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="what `tercet export` wrote")
    parser.add_argument("collection")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a server")
    where.add_argument("--path", help="a folder, for the local mode")
    args = parser.parse_args()
    client = QdrantClient(url=args.url) if args.url else QdrantClient(path=args.path)
    print(f"{copy(client, args.collection, args.file)} points in {args.collection}")
    client.close()


if __name__ == "__main__":
    main()
